"""A branch and its head as a network without this package: one of torchvision, or a few lines of plain PyTorch."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from denetdm_cli.config.schema import BranchConfig, CifarResnetConfig, CnnConfig, MlpConfig, TorchvisionConfig
from denetdm_cli.models import convnets
from denetdm_cli.models.torchvision_nets import builder_options

_NETWORK_FILE = "network.py"
_LOAD = 'model.load_state_dict(load_file("model.safetensors"))'
_LOAD_MNASNET = """\
state = OrderedDict(load_file("model.safetensors"))
state._metadata = {"": {"version": 2}}  # which this network asks for
model.load_state_dict(state)"""
_IN_TWO = "branch and head stay separate, under the names target and head"


@dataclass(frozen=True)
class Portable:
    """A network as one module that needs nothing of this package.

    Attributes:
        module: in evaluation mode, with trained weights.
        is_stock: whether its state dict is that of an architecture which PyTorch or torchvision has, names and shapes.
        description: the architecture in words.
        code: lines that build it as `model`, given `models` of torchvision, `nn`, `OrderedDict` and the files.
        load: lines that fill `model` from model.safetensors.
        files: Python files that `code` imports, by name.
    """

    module: nn.Module
    is_stock: bool
    description: str
    code: str
    load: str = _LOAD
    files: Mapping[str, str] = field(default_factory=dict)


def portable(branch: nn.Module, head: nn.Linear, config: BranchConfig, image_shape: tuple[int, int, int]) -> Portable:
    """Make head(branch(x)) portable; the result may share modules with both.

    The last linear layer of a torchvision network and the head after it are one linear map, so they become the last
    layer that torchvision gives the network for so many classes. That is not so for SqueezeNet, where a ReLU and
    pooling lie between the two.

    Args:
        branch: on the CPU; left unchanged.
        head: the linear layer after it.
        config: the architecture of the branch.
        image_shape: (C, H, W).
    """
    if isinstance(config, MlpConfig):
        return _mlp(branch, head)
    if isinstance(config, CnnConfig):
        children = OrderedDict([*branch.named_children(), ("head", head)])
        lines = "".join(f"        {name}={_call(child)},\n" for name, child in children.items())
        code = f"model = nn.Sequential(\n    OrderedDict(\n{lines}    )\n)"
        description = f"a convolutional network of {config.depth} layers and a linear one"
        return Portable(_done(nn.Sequential(children)), True, description, code)
    if isinstance(config, CifarResnetConfig):
        code = f"from network import CifarResNet\n\n{_in_two(f'CifarResNet({image_shape[0]}, {config.depth})', head)}"
        description = f"a ResNet for CIFAR of depth {config.depth} (the class is in {_NETWORK_FILE}); {_IN_TWO}"
        files = {_NETWORK_FILE: _cifar_source()}
        return Portable(_joined(branch, head), False, description, code, files=files)
    if config.name.startswith("squeezenet"):
        return _squeezenet(config.name, branch, head)
    return _torchvision(config, branch, head, image_shape)


def _mlp(branch: nn.Module, head: nn.Linear) -> Portable:
    layers: list[nn.Module] = [nn.Flatten()]
    for linear in branch.get_submodule("layers").children():
        layers += [linear, nn.ReLU()]
    layers.append(head)
    code = "model = nn.Sequential(\n" + "".join(f"    {_call(layer)},\n" for layer in layers) + ")"
    description = f"a multi-layer perceptron of {len(layers) // 2} linear layers"
    return Portable(_done(nn.Sequential(*layers)), True, description, code)


def _squeezenet(name: str, branch: nn.Module, head: nn.Linear) -> Portable:
    projection = _call(branch.get_submodule("classifier.1"))
    code = f"network = models.{name}()\nnetwork.classifier[1] = {projection}\n{_in_two('network', head)}"
    description = f"torchvision's {name} and a linear layer after its pooling; {_IN_TWO}"
    return Portable(_joined(branch, head), False, description, code)


def _torchvision(
    config: TorchvisionConfig, branch: nn.Module, head: nn.Linear, image_shape: tuple[int, int, int]
) -> Portable:
    from torchvision import models

    name, classes, arguments = config.name, head.out_features, builder_options(config, image_shape)
    if "init_weights" in arguments:
        arguments["init_weights"] = False  # they are loaded afterwards
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **arguments)
    last, layer = [(key, module) for key, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    code = f"model = models.{name}(num_classes={classes}{given})"
    is_stock = layer.bias is not None
    if not is_stock:  # MaxViT's has none
        net.set_submodule(last, nn.Linear(layer.in_features, classes))
        code += f'\nmodel.set_submodule("{last}", nn.Linear({layer.in_features}, {classes}))'
    weight, bias = _folded(branch.get_submodule(last), head)
    state = OrderedDict(branch.state_dict()) | {f"{last}.weight": weight, f"{last}.bias": bias}
    is_mnasnet = isinstance(net, models.MNASNet)
    if is_mnasnet:
        vars(state)["_metadata"] = {"": {"version": 2}}
    net.load_state_dict(state)
    description = f"torchvision's {name}" + ("" if is_stock else ", but its last layer has a bias")
    return Portable(_done(net), is_stock, description, code, _LOAD_MNASNET if is_mnasnet else _LOAD)


def _folded(projection: nn.Module, head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of one linear layer that equals projection and head in turn."""
    if not isinstance(projection, nn.Linear):
        return head.weight.detach(), head.bias.detach()
    outer, inner = head.weight.detach().double(), projection.weight.detach().double()
    bias = outer @ projection.bias.detach().double() + head.bias.detach().double()
    return (outer @ inner).float(), bias.float()


def _joined(branch: nn.Module, head: nn.Linear) -> nn.Module:
    return _done(nn.Sequential(OrderedDict(target=branch, head=head)))


def _in_two(network: str, head: nn.Linear) -> str:
    return f"model = nn.Sequential(OrderedDict(target={network}, head={_call(head)}))"


def _done(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).eval()


def _call(module: nn.Module) -> str:
    """The call that builds such a layer, with fresh weights."""
    arguments: list[object] = []
    if isinstance(module, nn.Conv2d):
        arguments = [module.in_channels, module.out_channels, module.kernel_size[0]]
    elif isinstance(module, nn.Linear):
        arguments = [module.in_features, module.out_features]
    elif isinstance(module, nn.BatchNorm2d):
        arguments = [module.num_features]
    elif isinstance(module, nn.ZeroPad2d):
        arguments = [module.padding]
    elif isinstance(module, nn.MaxPool2d):
        arguments = [module.kernel_size]
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        arguments = [module.output_size]
    return f"nn.{type(module).__name__}({', '.join(map(str, arguments))})"


def _cifar_source() -> str:
    """A Python file with the class CifarResNet of this package."""
    parts = (convnets.CifarResNet, convnets._BasicBlock, convnets._stage, convnets._conv3x3)
    head = '"""The network of this model, as in denetdm (MIT licence)."""\n\n'
    imports = "from torch import Tensor, nn\nfrom torch.nn import functional as F\n\n\n"
    return head + imports + "\n\n".join(inspect.getsource(part) for part in parts)
