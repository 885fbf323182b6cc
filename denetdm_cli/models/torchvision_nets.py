"""Any classifier of torchvision as a branch, and the weights it may start from."""

import difflib
import functools
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from denetdm_cli.errors import CheckpointError, ConfigError, DownloadError
from denetdm_cli.files import sha256
from denetdm_cli.schema import TorchvisionConfig

_CLASSES = 1000
_NAMES_SHOWN = 4
_SILENCE_SECONDS = 15
"""How long a server may say nothing."""
_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")
"""Torchvision's file names end in the first digits of the file's SHA-256."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that GoogLeNet and Inception v3 have for training on ImageNet, and we do not."""


def build_torchvision(
    config: TorchvisionConfig, image_shape: tuple[int, int, int], key: str, *, start_weights: bool
) -> nn.Module:
    """A classifier of torchvision, its last layer replaced by a projection to `config.width` features.

    Where the last layer reads that many features already, nothing takes its place: so it is with the ResNet-18 of BFFHQ
    (512), while that of Corrupted CIFAR-10 ends in Linear(512, 64) (paper, appendix). Parameters keep their names of
    torchvision. The module says in `started_from` which file it started from, or None.

    Args:
        config: the network.
        image_shape: (C, H, W).
        key: of the branch in the configuration, for messages.
        start_weights: whether to load `config.weights`.
    Raises:
        ConfigError: torchvision has no such network, or it cannot take such images.
        CheckpointError: the file of start weights is missing, damaged or of another network.
        DownloadError: the ImageNet weights are neither here nor to be had.
    """
    from torchvision import models

    _require_known(config.name, models.list_models(module=models), key)
    with _refusing_images(config.name, image_shape, key):
        net: nn.Module = models.get_model(config.name, weights=None, **_options(config.name, image_shape))
        head = _replace_head(net, config.width)
        _try(net, image_shape)
    if isinstance(net, models.MNASNet):  # its own refuses every state dict without torch's version marks, such as ours
        vars(net)["_load_from_state_dict"] = functools.partial(nn.Module._load_from_state_dict, net)
    started_from = None
    if start_weights and config.weights is not None:
        path = _imagenet_file(config.name, key) if config.weights == "imagenet" else _own_file(config.weights, key)
        started_from = _start(net, head, config.name, path)
    vars(net).update(out_features=config.width, started_from=started_from)
    return net


def _require_known(name: str, known: list[str], key: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise ConfigError(
            f"{key}.name: torchvision has no classifier {name!r}",
            f"Names near it: {', '.join(near)}." if near else "Names are those of torchvision.models.list_models().",
        )


def _options(name: str, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """What a builder must be told besides."""
    _, height, width = image_shape
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": height}
    return {"input_size": (height, width)} if name.startswith("maxvit") else {}


@contextmanager
def _refusing_images(name: str, image_shape: tuple[int, int, int], key: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        _, height, width = image_shape
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"{key}: {name} cannot take images of {width}x{height} pixels: {reason}",
            f"Use images of another size, or another network: --set {key}.name=...",
        ) from None


def _replace_head(net: nn.Module, width: int) -> str:
    """Put the projection in the place of the last layer, and return that layer's name.

    SqueezeNet alone classifies by a 1x1 convolution, before its ReLU and average pooling; that stays as it is.
    """
    name, head = [
        (str(name), module)
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == _CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels == _CLASSES)
    ][-1]
    projection: nn.Module
    if isinstance(head, nn.Linear):
        projection = nn.Identity() if head.in_features == width else nn.Linear(head.in_features, width)
    else:
        projection = nn.Identity() if head.in_channels == width else nn.Conv2d(head.in_channels, width, 1)
    net.set_submodule(name, projection)
    return name


def _try(net: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Let one image without content pass, which raises what such an image would raise."""
    net.eval()
    shapes = {name: tensor.to("meta") for name, tensor in chain(net.named_parameters(), net.named_buffers())}
    with torch.no_grad():
        torch.func.functional_call(net, shapes, (torch.empty(1, *image_shape, device="meta"),))
    net.train()


def _start(net: nn.Module, head: str, name: str, path: Path) -> dict[str, str]:
    """Load all tensors but those of the head; the file's name and SHA-256."""
    digest = _verified(path)
    tensors = _read(path)
    for tensor in list(tensors):
        modern = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", tensor)  # DenseNet before torch 0.4.1
        tensors[modern] = tensors.pop(tensor)
        if modern.startswith((f"{head}.", *_AUXILIARY)):
            del tensors[modern]
    try:
        found = net.load_state_dict(tensors, strict=False)
        differences = {
            "missing": [tensor for tensor in found.missing_keys if not tensor.startswith(f"{head}.")],
            "extra": found.unexpected_keys,
        }
    except RuntimeError as error:
        differences = {"of another shape": re.findall(r"size mismatch for (\S+):", str(error)) or [str(error)]}
    problems = [f"{word}: {_some(names)}" for word, names in differences.items() if names]
    if problems:
        raise CheckpointError(
            f"{path} does not hold the tensors of {name}; {'; '.join(problems)}",
            f"Give a state dict of torchvision's {name}; only its last layer may differ.",
        )
    return {"file": path.name, "sha256": digest}


def _verified(path: Path) -> str:
    """The SHA-256 of a file, which must be the one its name promises, if it does."""
    digest = sha256(path)
    promised = _HASH.search(path.name)
    if promised and not digest.startswith(promised[1]):
        raise CheckpointError(
            f"{path} is cut short or damaged: its SHA-256 begins with {digest[: len(promised[1])]}, "
            f"but should with {promised[1]}",
            "Delete it and download it again.",
        )
    return digest


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or, without running any code in it, of a torch file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged pickle comes to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors: {reason}",
            "Give a state dict, saved with torch.save(model.state_dict(), PATH) or as .safetensors.",
        ) from None
    if isinstance(tensors, dict):
        others = [str(k) for k, value in tensors.items() if not (isinstance(k, str) and isinstance(value, Tensor))]
    else:
        others = [f"a {type(tensors).__name__}"]
    if others:
        raise CheckpointError(
            f"{path} holds more than tensors: {_some(others)}",
            "Give a state dict, saved with torch.save(model.state_dict(), PATH).",
        )
    return tensors


def _own_file(text: str, key: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{key}.weights: no file {path}", "Check the path, or give imagenet or null.")
    return path


def _imagenet_file(name: str, key: str) -> Path:
    """Torchvision's first ImageNet weights, which are what `pretrained=True` of the official code means.

    They are kept where torch.hub keeps them, and fetched as torchvision's own loader does it; that one is not used
    because it writes to stdout, unpickles whatever a file holds, and trusts a file that is there already.
    """
    from torchvision import models

    weights = models.get_model_weights(name).__members__.get("IMAGENET1K_V1")
    if weights is None:
        raise ConfigError(
            f"{key}.weights: torchvision has no weights of {name} that were trained on ImageNet-1K alone",
            f"Use --set {key}.weights=null or a file.",
        )
    url = str(weights.url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    promised = _HASH.search(path.name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    try:
        torch.hub.download_url_to_file(url, str(path), promised and promised[1], progress=sys.stderr.isatty())
    except (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError, RuntimeError) as error:
        raise DownloadError(
            f"the ImageNet weights of {name} ({key}.weights) are not in {path.parent}, and could not be downloaded: "
            f"{error or type(error).__name__}",
            f"Where there is a network, download {url} and give the file {path.name} with --set {key}.weights=PATH, or "
            f"put it into {path.parent}. Or train without it: --set {key}.weights=null (results then differ from the "
            "paper's).",
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return path


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
