"""Any classifier of torchvision as a branch, and the weights it may start from."""

import difflib
import functools
import math
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from denetdm_cli.config.schema import TorchvisionConfig
from denetdm_cli.models.state_dict import COUNTER, describe_differences, read_state_dict, tensor_differences
from denetdm_cli.utils.errors import CheckpointError, ConfigError, DownloadError
from denetdm_cli.utils.files import sha256
from denetdm_cli.utils.text import first_few

_CLASSES = 1000
_TIMEOUT_SECONDS = 15
"""Time limit for each answer of the server."""
_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")
"""Torchvision's file names end in the first digits of the file's SHA-256."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that GoogLeNet and Inception v3 have for training on ImageNet, and we do not."""
_POSITIONS = "encoder.pos_embedding"


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
        DownloadError: the ImageNet weights are neither cached nor downloadable.
    """
    from torchvision import models

    _require_known(config.name, models.list_models(module=models), key)
    with _refusing_images(config.name, image_shape, key):
        net: nn.Module = models.get_model(config.name, weights=None, **builder_options(config, image_shape))
        head = _replace_head(net, config.width)
        trial(net.eval(), image_shape)
    net.train()
    if isinstance(net, models.MNASNet):  # its own refuses every state dict without torch's version marks, such as ours
        vars(net)["_load_from_state_dict"] = functools.partial(nn.Module._load_from_state_dict, net)
    started_from = None
    if start_weights and config.weights is not None:
        imagenet = config.weights == "imagenet"
        path = _imagenet_file(config.name, key) if imagenet else Path(config.weights).expanduser()
        try:
            started_from = _load_start_weights(net, head, config.name, path)
        except CheckpointError as error:
            raise CheckpointError(f"{key}.weights: {error.what}", error.fix) from None
    vars(net).update(out_features=config.width, started_from=started_from)
    return net


def _require_known(name: str, known: list[str], key: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise ConfigError(
            f"{key}.name: torchvision has no classifier {name!r}",
            f"Names near it: {', '.join(near)}." if near else "Names are those of torchvision.models.list_models().",
        )


def builder_options(config: TorchvisionConfig, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Arguments of torchvision's builder of a network besides the number of classes.

    The ImageNet weights of GoogLeNet and Inception v3 were trained on images with mean and standard deviation 0.5;
    torchvision's builders make the networks change their input to that (`transform_input`) where weights are given.
    """
    _, height, width = image_shape
    if config.name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True, "transform_input": config.weights is not None}
    if config.name.startswith("vit_"):
        return {"image_size": height}
    return {"input_size": (height, width)} if config.name.startswith("maxvit") else {}


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


def trial(net: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Run the forward pass on the meta device: it raises what an image (C, H, W) would raise, and changes nothing."""
    shapes = {name: tensor.to("meta") for name, tensor in chain(net.named_parameters(), net.named_buffers())}
    with torch.no_grad():
        torch.func.functional_call(net, shapes, (torch.empty(1, *image_shape, device="meta"),))


def _load_start_weights(net: nn.Module, head: str, name: str, path: Path) -> dict[str, str]:
    """Load all tensors but those of the head; the file's name and SHA-256, and what was changed."""
    wanted = f"a state dict of torchvision's {name} (.pth or .safetensors), imagenet or null"
    given = {_modern(tensor): content for tensor, content in read_state_dict(path, wanted).items()}
    digest = _verified(path)
    tensors = {t: content for t, content in given.items() if not t.startswith((f"{head}.", *_AUXILIARY))}
    notes = _fit_positions(net, tensors)
    expected = {
        t: content
        for t, content in net.state_dict().items()
        if not t.startswith(f"{head}.") and (t in tensors or not t.endswith(COUNTER))
    }
    if different := describe_differences(tensor_differences(tensors, expected)):
        raise CheckpointError(
            f"{path} does not hold the tensors of {name}; {different}",
            f"Give a state dict of torchvision's {name}; only its last layer may differ. (Of a target model trained "
            "here, denetdm export writes one.)",
        )
    net.load_state_dict(tensors, strict=False)
    if spoilt := [t for t, content in net.state_dict().items() if not content.isfinite().all()]:
        raise CheckpointError(
            f"{path} holds what is no finite number in {first_few(spoilt)}",
            "Give weights whose training did not diverge.",
        )
    return {"file": path.name, "sha256": digest, **notes}


def _modern(name: str) -> str:
    """A tensor's name as torchvision has it today: DenseNets before torch 0.4.1 and vision transformers had others."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    return re.sub(r"(\.mlp\.)linear_([12])\.", lambda match: f"{match[1]}{'03'[int(match[2]) - 1]}.", name)


def _fit_positions(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Interpolate the position embeddings of a vision transformer whose weights are for images of another size.

    So does torchvision (`interpolate_embeddings`), after Dosovitskiy et al., ICLR 2021, section 3.2.

    Returns:
        What was done, if anything was.
    """
    from torchvision.models import VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    if not isinstance(net, VisionTransformer) or _POSITIONS not in tensors:
        return {}
    before = tensors[_POSITIONS].shape
    with suppress(ValueError, RuntimeError):  # no square of patches, say: its shape is then refused
        tensors.update(interpolate_embeddings(net.image_size, net.patch_size, {_POSITIONS: tensors[_POSITIONS]}))
    if tensors[_POSITIONS].shape == before:
        return {}
    sides = (math.isqrt(length - 1) for length in (before[1], tensors[_POSITIONS].shape[1]))
    return {"position_embedding": "interpolated from {0}x{0} to {1}x{1} patches".format(*sides)}


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


def _imagenet_file(name: str, key: str) -> Path:
    """Torchvision's first ImageNet weights, which are what `pretrained=True` of the official code means.

    They are cached in torch.hub's folder. `weights.get_state_dict` is not used: it writes to stdout and trusts a cached
    file, and what it returns has lost the file's name and digest.
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
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
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
