"""The README.md of an exported model: a model card in the form of Hugging Face."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from denetdm_cli import __version__
from denetdm_cli.config.schema import BranchConfig, CifarResnetConfig, CnnConfig, MlpConfig
from denetdm_cli.evaluation.metrics import METRICS
from denetdm_cli.evaluation.selection import selection_note
from denetdm_cli.hub.portable import Portable
from denetdm_cli.hub.target import Resizing, TargetCheckpoint
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Method
from denetdm_cli.training.pipeline import methods_up_to

_METRIC_NAMES = {
    "unbiased": "Unbiased accuracy (mean over all groups)",
    "accuracy": "Accuracy",
    "aligned": "Accuracy on bias-aligned groups (mean)",
    "conflicting": "Accuracy on bias-conflicting groups (mean)",
    "worst_group": "Accuracy of the worst group",
    "worst_class": "Accuracy of the worst class",
}


def model_card(target: TargetCheckpoint, network: Portable, digest: str, *, onnx: bool) -> str:
    """The text of the card.

    Args:
        target: the checkpoint.
        network: its exported network.
        digest: SHA-256 of the checkpoint.
        onnx: whether model.onnx is part of the export.
    """
    sections = (
        _front_matter(target, onnx=onnx),
        _introduction(target, network),
        _loading(target, network, onnx=onnx),
        _images(target),
        _training(target),
        _results(target),
        _limits(target),
        _origin(target, digest),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _front_matter(target: TargetCheckpoint, *, onnx: bool) -> list[str]:
    architecture, dataset = target.branch_config.name, _data_name(target)
    tags = ["image-classification", "debiasing", "denetdm", "pytorch", "safetensors", *(["onnx"] if onnx else [])]
    fields: dict[str, Any] = {
        "license": "unknown",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": tags,
    }
    metrics = _metrics(target)
    on_test = " (selected on test data)" if target.metadata["selection"]["selected_on_test_data"] else ""
    found = [
        {"type": "accuracy", "name": _METRIC_NAMES[name] + on_test, "value": metrics[name]}
        for name in sorted(METRICS, key=lambda name: name != target.metadata["reported_metric"])
        if metrics.get(name) is not None
    ]
    if found:  # the Hub refuses a model-index without metrics
        split = target.metadata["dataset"]["evaluation_split"]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": _slug(dataset), "name": dataset, "split": split},
            "metrics": found,
        }
        fields["model-index"] = [{"name": _slug(f"denetdm-{architecture}-{dataset}"), "results": [result]}]
    return ["---", yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000).rstrip(), "---"]


def _introduction(target: TargetCheckpoint, network: Portable) -> Iterator[str]:
    names = target.class_names
    yield f"# {_text(target.branch_config.name)} for {_text(_data_name(target))}, trained with {target.method.name}"
    yield ""
    yield f"An image classifier for {len(names)} classes: {', '.join(map(_text, names))}."
    yield f"Training used {'' if any(kind.needs_bias for kind in _methods(target)) else 'no '}bias labels."
    yield ""
    stock = "" if network.is_stock else " No library has this architecture as it is; the code below builds it."
    yield f"`model.safetensors` holds {network.description}.{stock}"
    yield "`config.json` describes its images and names its classes."


def _loading(target: TargetCheckpoint, network: Portable, *, onnx: bool) -> Iterator[str]:
    channels, height, width = target.image_shape
    yield "## How to load it"
    yield ""
    yield "With PyTorch, torchvision and safetensors, in the folder of the files:"
    yield ""
    yield from ("```python", *_imports(network), "", *network.code.splitlines(), *network.load.splitlines())
    yield from ("model.eval()", "", *_preparation(target), "")
    yield from (
        'image = ImageOps.exif_transpose(Image.open("image.jpg"))',
        'if image.mode.startswith("I"):  # 16-bit grey: the high byte',
        '    image = image.convert("I").point(lambda value: value / 256).convert("L")',
        "if image.has_transparency_data:  # is laid over white",
        '    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))',
        'image = image.convert("RGB")',
        "with torch.inference_mode():",
        "    probabilities = model(prepare(image)[None]).softmax(dim=1)[0].tolist()",
        'class_names = json.loads(Path("config.json").read_text(encoding="utf-8"))["class_names"]',
        "print(dict(zip(class_names, probabilities)))",
        "```",
        "",
    )
    if onnx:
        yield f"`model.onnx` takes `images`, float32 (batch, {channels}, {height}, {width}), RGB from 0 to 1, at any"
        yield "batch size, and gives `logits`; the normalisation is inside. With onnxruntime:"
        yield ""
        yield from ("```python", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("model.onnx")')
        yield from ('(logits,) = session.run(None, {"images": images})', "```")
    else:
        yield "For other programs, `denetdm export --onnx` writes an ONNX file beside these."


def _imports(network: Portable) -> Iterator[str]:
    code = network.code + network.load
    yield "import json"
    if "OrderedDict" in code:
        yield "from collections import OrderedDict"
    yield from ("from pathlib import Path", "", "import torch", "from PIL import Image, ImageOps")
    yield from ("from safetensors.torch import load_file", *(["from torch import nn"] if "nn." in code else []))
    yield f"from torchvision import {'models, ' if 'models.' in code else ''}transforms"


def _preparation(target: TargetCheckpoint) -> Iterator[str]:
    resizing, data = target.resizing, target.config.data
    yield "prepare = transforms.Compose("
    yield "    ["
    if resizing.fit == "crop":
        yield f"        transforms.Resize({resizing.height}),"
        yield f"        transforms.CenterCrop({resizing.height}),"
    else:
        yield f"        transforms.Resize(({resizing.height}, {resizing.width})),"
    yield "        transforms.ToTensor(),"
    if data.mean is not None:
        yield f"        transforms.Normalize({data.mean}, {data.std}),"
    yield "    ]"
    yield ")"


def _images(target: TargetCheckpoint) -> list[str]:
    resizing, data = target.resizing, target.config.data
    size = f"{resizing.width} by {resizing.height} pixels"
    normalised = "pixel / 255" if data.mean is None else f"(pixel / 255 - {data.mean}) / {data.std} for R, G and B"
    return [
        "## Images",
        "",
        f"RGB, {size}, as {normalised}. {resizing_note(resizing)}",
        "What is transparent was laid over white; of 16-bit grey the high byte was kept.",
    ]


def resizing_note(resizing: Resizing) -> str:
    """A sentence on how an image is resized for the model."""
    if resizing.fit == "crop":
        how = "The shorter side is resized to that size and the middle is cut out"
    else:
        how = "An image of another size is stretched to it"
    known = {
        True: ", as the training images were",
        False: "; the training images had it from the start",
        None: "; whether the training images were resized so is not known",
    }
    return f"{how} (bilinear, with antialiasing){known[resizing.in_training]}."


def _training(target: TargetCheckpoint) -> Iterator[str]:
    metadata, config, data = target.metadata, target.config, target.metadata["dataset"]
    yield "## Training"
    yield ""
    for kind in _methods(target):
        branches = ", ".join(f"{name}: {_branch(getattr(config.model, name))}" for name in kind.branches)
        paper = f" Published: {kind.paper}." if kind.paper else ""
        yield f"- Method `{kind.name}` ({branches}). {kind.title}{paper}"
    digest, count = _or_unknown(data["digest"]), len(target.class_names)
    yield f"- Data: {_text(_data_name(target))}, {count} classes; digest {digest}."
    if isinstance(data.get("recipe"), dict):
        recipe = ", ".join(f"{_text(key)} {_text(value)}" for key, value in data["recipe"].items())
        yield f"- Recipe of the data: {recipe}."
    yield f"- Seed: {_or_unknown(metadata['seed'])}."
    if metadata.get("source") is not None:
        yield "- Settings: not known; the model was converted from a file that holds the networks alone."
    else:
        for kind in _methods(target):
            values = config.settings(kind.name).model_dump(exclude={"selection_metric", "teacher"}).items()
            yield f"- Settings of {kind.name}: {', '.join(f'{key} {value}' for key, value in values)}."
        teacher = (metadata.get("teacher") or {}).get("epoch")
        taken = "" if teacher is None else f", from a teacher of epoch {teacher}"
        yield f"- Epoch: {metadata['epoch']}{taken}."
        for branch, start in (metadata.get("start_weights") or {}).items():
            file, digest = _text(start["file"]), _text(start["sha256"])
            yield f"- The {_text(branch)} branch started from {file} (SHA-256 {digest})."


def _results(target: TargetCheckpoint) -> Iterator[str]:
    metrics, metadata = _metrics(target), target.metadata
    yield "## Results"
    yield ""
    if not metrics:
        yield "No figures are kept with this model: it was not evaluated by the program that exported it."
        return
    reported_on = metadata["selection"]["reported_on"]
    yield f"Accuracy in %, measured on the {reported_on} part of `{_text(metadata['dataset']['evaluation_split'])}/`."
    yield selection_note(metadata["selection"])
    yield ""
    yield from _table(["figure", "%"], ([_METRIC_NAMES[name], _figure(target, name)] for name in METRICS))
    yield ""
    groups = metrics.get("groups")
    if groups is None:
        yield "The evaluation images have no bias labels, so there are no figures by group."
        return
    yield "By group (rows: class, columns: value of the bias attribute):"
    yield ""
    rows = ([_text(name), *map(_percent, row)] for name, row in zip(target.class_names, groups, strict=False))
    yield from _table(["class", *map(_text, metadata["dataset"]["bias_names"])], rows)
    empty = sum(share is None for row in groups for share in row)
    if empty:
        yield ""
        yield f"{empty} of {sum(map(len, groups))} groups have no image there (-); no mean counts them."


def _limits(target: TargetCheckpoint) -> Iterator[str]:
    metrics = _metrics(target)
    aligned, conflicting = metrics.get("aligned"), metrics.get("conflicting")
    yield "## Limits"
    yield ""
    yield "- It gives every image one of its classes, whatever the image shows; its probabilities are not calibrated."
    yield "- It was trained for images such as those of its data set; nothing is known of others."
    if aligned is not None and conflicting is not None:
        yield (
            f"- Of the shortcut, a part may be left: images that go with it are right in {_percent(aligned)} %, the "
            f"others in {_percent(conflicting)} % (means over groups)."
        )
        yield "- Shortcuts that the bias labels of the evaluation images do not name were not measured."
    else:
        yield "- Whether it leans on a shortcut was not measured here."
    if target.metadata["selection"]["selected_on_test_data"]:
        yield "- An epoch was picked by its result on test images, so figures on them are too good for a test."
    yield "- No licence is stated. Those of the training images and of the start weights may bind whoever uses it."


def _origin(target: TargetCheckpoint, digest: str) -> Iterator[str]:
    yield "## Origin"
    yield ""
    yield f"Exported by denetdm {__version__} from `{_text(target.path.name)}`, SHA-256 `{digest}`."
    source = target.metadata.get("source")
    if isinstance(source, dict):
        said = ", ".join(f"{_text(key)}: {_text(value)}" for key, value in source.items())
        yield f"That was converted from a file of the official code ({said})."
    elif versions := target.metadata["versions"]:
        yield f"Trained with {', '.join(f'{_text(name)} {_text(version)}' for name, version in versions.items())}."


def _methods(target: TargetCheckpoint) -> list[type[Method]]:
    """The methods of the training, in their order."""
    return [METHODS[name] for name in methods_up_to(target.method.name)]


def _metrics(target: TargetCheckpoint) -> Mapping[str, Any]:
    """The metrics of the network at the end of its training; empty where nothing was measured."""
    metrics: Mapping[str, Any] = (target.metadata.get("metrics") or {}).get(target.predictor) or {}
    return metrics


def _figure(target: TargetCheckpoint, name: str) -> str:
    """A metric in per cent; for the worst group and class also its name."""
    metrics, facts = _metrics(target), target.metadata["dataset"]
    share, which = metrics.get(name), metrics.get(f"{name}_of")
    if share is None or which is None:
        return _percent(share)
    names = (
        [facts["class_names"][which]]
        if name == "worst_class"
        else [
            facts["class_names"][which[0]],
            facts["bias_names"][which[1]],
        ]
    )
    return f"{_percent(share)} ({', '.join(map(_text, names))})"


def _data_name(target: TargetCheckpoint) -> str:
    return str(target.metadata["dataset"].get("name") or target.config.dataset.name)


def _branch(config: BranchConfig) -> str:
    if isinstance(config, MlpConfig | CnnConfig):
        return f"{config.name} of {config.depth} layers, width {config.width}"
    if isinstance(config, CifarResnetConfig):
        return f"ResNet for CIFAR of depth {config.depth}"
    return f"torchvision's {config.name}"


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _or_unknown(value: Any) -> str:
    return "not known" if value is None else _text(value)


def _text(value: object) -> str:
    """Foreign text, escaped for Markdown and HTML."""
    plain = " ".join(html.escape(str(value), quote=False).split())
    return re.sub(r"([\\`*\[\]|])", r"\\\1", plain)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "data"
