"""Start weights of the branches as published for ImageNet, and by stage."""

import email.message
import hashlib
import io
import socket
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from start_weights import SMALL, build, refused, saved, section
from torchvision import models

from denetdm_cli.config.schema import ModelConfig
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.models.factory import started_from
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError, ConfigError, DownloadError


@pytest.mark.parametrize("failure", [URLError("unreachable"), TimeoutError("timed out"), ConnectionResetError("reset")])
def test_without_a_network_the_message_says_which_file_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    timeouts = []

    def fail(*_: object, **__: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise failure

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    before = socket.getdefaulttimeout()
    error = refused(DownloadError, "imagenet", "resnet18")
    assert timeouts == [15]
    assert socket.getdefaulttimeout() == before
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    assert str(failure.args[0]) in error.what
    assert f"of resnet18 (model.target.weights) are not in {folder}" in error.what
    for part in (models.ResNet18_Weights.IMAGENET1K_V1.url, "resnet18-f37072fd.pth", str(folder)):
        assert part in error.fix
    assert "--set model.target.weights=PATH" in error.fix
    assert "--set model.target.weights=null" in error.fix
    assert list(folder.iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bytes]:
    """Weights that are published under a name with their hash; the network is not there yet."""
    content = saved(tmp_path / "published.pth").read_bytes()
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    members = {"IMAGENET1K_V1": SimpleNamespace(url=f"https://example.org/models/{name}")}
    monkeypatch.setattr(models, "get_model_weights", lambda _: SimpleNamespace(__members__=members))
    return name, content


class _Response(io.BytesIO):
    def info(self) -> email.message.Message:
        return email.message.Message()


def test_imagenet_weights_are_fetched_once(
    tmp_path: Path,
    published: tuple[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name, content = published
    asked: list[str] = []

    def answer(request: object) -> _Response:
        asked.append(request.full_url)  # type: ignore[attr-defined]
        return _Response(content)

    monkeypatch.setattr(torch.hub, "urlopen", answer)
    for _ in range(2):
        assert build("imagenet").started_from == {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
    assert asked == [f"https://example.org/models/{name}"]
    assert capfd.readouterr() == ("", "")
    (tmp_path / "torch" / "hub" / "checkpoints" / name).write_bytes(content[:-1])
    assert "is cut short or damaged" in refused(CheckpointError, "imagenet").what


def test_a_download_cut_short_is_refused(
    tmp_path: Path, published: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", lambda _: _Response(published[1][:-1]))
    assert "invalid hash" in refused(DownloadError, "imagenet").what
    assert list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()) == []


def test_a_network_without_imagenet_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "get_model_weights", lambda _: SimpleNamespace(__members__={}))
    assert refused(ConfigError, "imagenet").what.startswith(
        f"model.target.weights: torchvision has no weights of {SMALL}"
    )


def test_every_classifier_but_the_largest_has_imagenet_weights_with_a_hash_in_their_name() -> None:
    from denetdm_cli.models.torchvision_nets import _HASH

    for name in models.list_models(module=models):
        weights = models.get_model_weights(name).__members__.get("IMAGENET1K_V1")
        assert (weights is None) == (name in ("regnet_y_128gf", "vit_h_14"))
        assert weights is None or _HASH.search(weights.url)


def _models(shallow: object, deep: object, target: object) -> ModelConfig:
    return ModelConfig(shallow=section(shallow), deep=section(deep), target=section(target))


@pytest.mark.slow
def test_each_stage_starts_only_the_branches_it_trains(tmp_path: Path) -> None:
    path, missing = saved(tmp_path / "weights.pth"), tmp_path / "missing.pth"
    shape = (3, 64, 64)
    experts = ProductOfExperts(_models(None, path, missing), shape, 10, seed=0, start_weights=True)
    fact = {"file": "weights.pth", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert started_from(experts) == {"deep": fact}
    model = TargetModel(_models(missing, missing, path), shape, 10, seed=0, start_weights=True)
    assert started_from(model) == {"target": fact}
    for kind, config, key in (
        (ProductOfExperts, _models(missing, None, None), "model.shallow.weights"),
        (ProductOfExperts, _models(None, missing, None), "model.deep.weights"),
        (TargetModel, _models(None, None, missing), "model.target.weights"),
    ):
        with pytest.raises(CheckpointError, match=key):
            kind(config, shape, 10, seed=0, start_weights=True)
        assert started_from(kind(config, shape, 10, seed=0)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ProductOfExperts, TargetModel])
def test_a_model_is_rebuilt_from_a_checkpoint_without_any_file_of_start_weights(
    tmp_path: Path, kind: type[ProductOfExperts] | type[TargetModel]
) -> None:
    start, path, shape = saved(tmp_path / "weights.pth"), tmp_path / "last.safetensors", (3, 64, 64)
    config = _models(start, None if kind is ProductOfExperts else "imagenet", start)
    model = kind(config, shape, 3, seed=5, start_weights=True)
    checkpoint.save(path, model.state_dict(), {})
    start.unlink()
    rebuilt = kind(config, shape, 3, seed=0)
    checkpoint.fill(rebuilt, checkpoint.load(path)[0], path)
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), model.eval()(x))
