import re
from collections.abc import Callable

import pytest
import torch
from official_reference import CLASSES, SIX, SIZES, Reference, images
from torch import Tensor, nn

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.hub.official import ARCHITECTURES, OFFICIAL_MODELS, Official, recognise, to_official, to_ours
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.utils.errors import CheckpointError

State = dict[str, Tensor]
SIX_BFFHQ_SLOW = [pytest.param(*kind, marks=[pytest.mark.slow] * (kind[0] == "bffhq")) for kind in SIX]


@pytest.fixture(scope="module")
def references() -> Callable[[str, str], Reference]:
    made: dict[tuple[str, str], Reference] = {}

    def get(dataset: str, stage: str) -> Reference:
        if (dataset, stage) not in made:
            made[dataset, stage] = Reference(dataset, stage)
        return made[dataset, stage]

    return get


@pytest.fixture
def state(references: Callable[[str, str], Reference]) -> Callable[[str, str], State]:
    return lambda dataset, stage: dict(references(dataset, stage).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "stage"), SIX_BFFHQ_SLOW)
def test_all_six_are_recognised_and_give_the_same_logits(
    references: Callable[[str, str], Reference], dataset: str, stage: str
) -> None:
    reference = references(dataset, stage)
    kind = recognise(reference.state_dict())
    assert kind == Official(dataset, stage)
    architecture = ARCHITECTURES[dataset]
    assert (architecture.image_shape, architecture.classes) == ((SIZES[dataset], SIZES[dataset], 3), CLASSES[dataset])
    build = ProductOfExperts if stage == "train-poe" else TargetModel
    model = build(architecture.model, (3, SIZES[dataset], SIZES[dataset]), CLASSES[dataset], seed=9)
    model.load_state_dict(to_ours(reference.state_dict(), kind), strict=True)
    x = images(96 if dataset == "bffhq" else SIZES[dataset])  # published for 224 pixels, which take long
    with torch.inference_mode():
        logits = (model.eval().predict_all if isinstance(model, TargetModel) else model.eval().predict)(x)
        shipped = model.predict(x)
        expected = {
            "shallow" if stage == "train-poe" else "target": reference(x, 1, 0),
            "product": reference(x, 1, 1),
            "deep": reference(x, 0, 1),
        }
    assert logits.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(logits[name], values, rtol=1e-5, atol=1e-5)
    assert next(iter(logits)) == next(iter(shipped))
    assert all(torch.equal(values, logits[name]) for name, values in shipped.items())
    assert not torch.allclose(logits["product"], logits["deep"], atol=1e-2)


@pytest.mark.parametrize(("dataset", "stage"), SIX)
def test_there_and_back_is_the_same(state: Callable[[str, str], State], dataset: str, stage: str) -> None:
    before, kind = state(dataset, stage), Official(dataset, stage)
    after = to_official(to_ours(before, kind), kind)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    Reference(dataset, stage, seed=1).load_state_dict(after, strict=True)


def test_the_presets_have_the_official_networks() -> None:
    for dataset, architecture in ARCHITECTURES.items():
        without = [] if dataset == "coloredmnist" else ["model.target.weights=null"]
        assert load_config(preset_path(dataset), without).model == architecture.model
    assert len(OFFICIAL_MODELS) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.bias": None}, "nearest is coloredmnist, stage 1 (train-poe); missing: classifier.bias"),
        ({"dim_transform.weight": torch.ones(2), "z": torch.ones(1)}, "; extra: dim_transform.weight, z"),
        (
            {"classifier.weight": torch.ones(2, 100), "classifier.bias": torch.ones(2)},
            "of another shape or type: classifier.weight is float32[2, 100], not float32[10, 100], classifier.bias is",
        ),
        ({"classifier.bias": torch.ones(10).double()}, "classifier.bias is float64[10], not float32[10]"),
        ({"classifier.bias": torch.ones(10).long()}, "classifier.bias is int64[10], not float32[10]"),
        (
            {"classifier.bias": None, "x": torch.ones(1), "classifier.weight": torch.ones(1)},
            "missing: classifier.bias; extra: x; of another shape or type: classifier.weight",
        ),
    ],
)
def test_another_architecture_is_refused(
    state: Callable[[str, str], State], change: dict[str, Tensor | None], message: str
) -> None:
    changed = {k: v for k, v in {**state("coloredmnist", "train-poe"), **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=re.escape(message)):
        recognise(changed, "some.th")
    with pytest.raises(CheckpointError):
        to_ours(changed, Official("coloredmnist", "train-poe"))


@pytest.mark.parametrize(("dataset", "stage"), SIX)
def test_the_nearest_is_the_one_that_was_altered(state: Callable[[str, str], State], dataset: str, stage: str) -> None:
    altered = state(dataset, stage)
    altered["classifier.weight"] = torch.ones(7, altered["classifier.weight"].shape[1])
    first = next(name for name in altered if name.startswith("debias"))
    del altered[first]
    with pytest.raises(CheckpointError) as caught:
        recognise(altered)
    assert f"the nearest is {dataset}, stage {1 if stage == 'train-poe' else 2}" in caught.value.what
    assert f"missing: {first}" in caught.value.what


def test_the_wrong_kind_is_refused(state: Callable[[str, str], State]) -> None:
    with pytest.raises(CheckpointError, match=r"is not bffhq, stage 2 .*; missing: .* extra: .*debias_branch\.c1"):
        to_ours(state("bffhq", "train-poe"), Official("bffhq", "distill"))


def test_copies_of_one_tensor_must_be_equal(state: Callable[[str, str], State]) -> None:
    kind = Official("corruptedcifar10", "distill")
    for name in ("debias_backbone.layer4.1.bn2.running_var", "debias_branch.b1.conv1.weight"):
        changed = state("corruptedcifar10", "distill")
        changed[name] = changed[name].clone()
        changed[name].view(-1)[-1] += 1e-6
        with pytest.raises(CheckpointError, match="are one tensor in the official model") as caught:
            to_ours(changed, kind)
        assert name in caught.value.what
    lacking = state("corruptedcifar10", "distill")
    del lacking["debias_backbone.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"missing: debias_backbone\.conv1\.weight"):
        to_ours(lacking, kind)


def test_counters_are_all_there_or_none(state: Callable[[str, str], State]) -> None:
    kind = Official("corruptedcifar10", "train-poe")
    old = {k: v for k, v in state("corruptedcifar10", "train-poe").items() if not k.endswith("num_batches_tracked")}
    assert recognise(old) == kind
    ours = to_ours(old, kind)
    counters = [tensor for name, tensor in ours.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 22
    assert all(counter.dtype == torch.int64 and counter.shape == () and counter == 0 for counter in counters)
    old["bias_branch.bn1.num_batches_tracked"] = torch.tensor(1)
    with pytest.raises(CheckpointError, match=r"missing: .*num_batches_tracked and 16 more"):
        recognise(old)
    with pytest.raises(CheckpointError, match=r"missing: .*num_batches_tracked"):
        to_official({k: v for k, v in ours.items() if "num_batches" not in k}, kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened_without_loss(state: Callable[[str, str], State], dtype: torch.dtype) -> None:
    kind = Official("coloredmnist", "distill")
    halves = {name: tensor.to(dtype) for name, tensor in state("coloredmnist", "distill").items()}
    ours = to_ours(halves, recognise(halves))
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    back = to_official(ours, kind)
    assert all(torch.equal(back[name].to(dtype), halves[name]) for name in halves)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_refused(state: Callable[[str, str], State], value: float) -> None:
    broken = state("coloredmnist", "train-poe")
    broken["bias_branch.2.hidden_layers.1.bias"] = torch.full((100,), value)
    with pytest.raises(CheckpointError, match=r"bias_branch\.2\.hidden_layers\.1\.bias holds values that are not"):
        to_ours(broken, Official("coloredmnist", "train-poe"))


def test_the_result_shares_no_memory_with_the_file() -> None:
    flat = torch.zeros(2352 * 100)
    reference = Reference("coloredmnist", "train-poe")
    state = dict(reference.state_dict())
    for name in ("debias_branch.c1.weight", "bias_branch.0.weight"):
        state[name] = flat.view(100, 2352)
    ours = to_ours(state, recognise(state))
    assert len({tensor.untyped_storage().data_ptr() for tensor in ours.values()}) == len(ours)
    assert not any(isinstance(tensor, nn.Parameter) or tensor.requires_grad for tensor in ours.values())
