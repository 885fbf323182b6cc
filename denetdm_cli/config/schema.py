"""Every key of a configuration: its type, its default and what it means. Methods add a section each."""

import functools
import importlib
import re
import typing
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, model_validator

SelectionRule = Literal["last", "valid", "paper"]
SELECTION_RULES: tuple[SelectionRule, ...] = typing.get_args(SelectionRule)


_TORCHVISION = re.compile(
    r"^(alexnet|convnext|densenet|efficientnet|googlenet|inception|maxvit|mnasnet|mobilenet|regnet|resnet|resnext"
    r"|shufflenet|squeezenet|swin|vgg|vit|wide_resnet)\w*$"
)
"""What names of torchvision's classifiers begin with; the full list takes seconds to import."""


class Section(BaseModel):
    """A part of the configuration: unknown keys, wrong types and infinities are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**32, description="draws what the data set leaves to chance; apart from `seed`")]
Ratio = Annotated[
    float, Field(gt=0, lt=1, description="conflict ratio: share of training images that break the bias (--ratio)")
]


class _Dataset(Section):
    root: str = Field("data", description="folder of the data sets, relative to where the command runs (--data-root)")


class ColoredMnistConfig(_Dataset):
    """Colored MNIST, made from MNIST."""

    name: Literal["coloredmnist"]
    ratio: Ratio = 0.01
    severity: int = Field(4, ge=1, le=5, description="the higher, the purer the colors; the papers use 4")
    seed: Seed = 0


class CorruptedCifar10Config(_Dataset):
    """Corrupted CIFAR-10, made from CIFAR-10."""

    name: Literal["corruptedcifar10"]
    type: Literal[0, 1] = Field(0, description="which ten corruptions")
    ratio: Ratio = 0.01
    severity: int = Field(4, ge=1, le=4, description="strength of the corruptions; the papers use 4")
    seed: Seed = 0


class DfaConfig(_Dataset):
    """Colored MNIST or Corrupted CIFAR-10 as DFA publishes them, imported as they are."""

    name: Literal["cmnist", "cifar10c"]
    ratio: Ratio = 0.01


class _Imported(_Dataset):
    """A data set that is imported from files: every image is resized once, to `size` by `size` pixels."""

    size: int = Field(224, ge=8, le=2048, description="side of the stored images in pixels (make-data --size)")
    fit: Literal["stretch", "crop"] = Field(
        "stretch", description="stretch to a square, or resize the shorter side and crop the center"
    )


class BffhqConfig(_Imported):
    """BFFHQ."""

    name: Literal["bffhq"]


class BarConfig(_Imported):
    """BAR; without a ratio the original, whose training images have no bias labels."""

    name: Literal["bar"]
    ratio: Ratio | None = Field(None, description="0.01 or 0.05; null is the original, without bias labels in train")


class CelebaConfig(_Imported):
    """CelebA, hair colour by gender; `subsample` as Hong and Yang do."""

    name: Literal["celeba"]
    subsample: bool = Field(False, description="keep 2,000 of the largest training group (Hong and Yang 2021)")
    seed: Seed = 0


class WaterbirdsConfig(_Imported):
    """Waterbirds."""

    name: Literal["waterbirds"]


class FolderConfig(_Imported):
    """Own images, packed as `folder` in the root; a share applies where the source lacks that split."""

    name: Literal["folder"]
    folder: str = Field(
        "mine",
        pattern=r"^\w[\w .+-]*$",
        title="the plain name of a folder, without / or a dot in front",
        description="name of the packed data set below the root (make-data --name)",
    )
    valid_share: float = Field(0.1, ge=0, lt=1, description="share to select on, where the source has no valid split")
    test_share: float = Field(0.2, gt=0, lt=1, description="share to report on, where the source has no test split")
    seed: Seed = 0


DatasetConfig: TypeAlias = Annotated[
    ColoredMnistConfig
    | CorruptedCifar10Config
    | DfaConfig
    | BffhqConfig
    | BarConfig
    | CelebaConfig
    | WaterbirdsConfig
    | FolderConfig,
    Field(discriminator="name"),
]


class DataConfig(Section):
    """How images become batches; augmentation is for training alone."""

    cache: Literal["auto", "device", "host", "stream"] = Field(
        "auto",
        description="where images are kept: device, host memory, or read from disk; auto takes the first that fits",
    )
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = Field(
        None, description="per channel (R, G, B), subtracted from pixel/255; null for none"
    )
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None = Field(
        None, description="per channel, divides what is left; null for none"
    )
    random_crop_padding: int = Field(0, ge=0, le=1024, description="random crop after padding by so many black pixels")
    random_resized_crop: (
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] | None
    ) = Field(None, description="random crop of this share of the area, such as [0.08, 1.0], resized back")
    horizontal_flip: bool = Field(False, description="flip one image of two")

    @model_validator(mode="after")
    def _sensible(self) -> "DataConfig":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both, or null for both")
        if self.random_resized_crop is not None:
            if self.random_crop_padding:
                raise ValueError("random_crop_padding and random_resized_crop exclude each other: set one to 0 or null")
            if self.random_resized_crop[0] > self.random_resized_crop[1]:
                raise ValueError("random_resized_crop: the smallest share of the area comes first, then the largest")
        return self

    @property
    def augments(self) -> bool:
        """Whether training images differ from epoch to epoch."""
        return bool(self.random_crop_padding or self.random_resized_crop or self.horizontal_flip)


class MlpConfig(Section):
    """`depth` linear layers up to and including the head, `width` units a hidden layer."""

    name: Literal["mlp"]
    depth: int = Field(3, ge=2, le=100, description="linear layers up to and including the head, as the paper counts")
    width: int = Field(100, ge=1, le=16384, description="units of every hidden layer, and features")

    @property
    def feature_width(self) -> int:
        """Width of the features the head reads."""
        return self.width


class CnnConfig(Section):
    """The paper's shallow convolutional networks: 3 layers (Corrupted CIFAR-10) or 4 (BFFHQ); `width` is the last's."""

    name: Literal["cnn"]
    depth: Literal[3, 4] = Field(3, description="convolutions: 3 for 32 pixels, 4 for 224")
    width: int = Field(64, ge=1, le=16384, description="features")

    @property
    def feature_width(self) -> int:
        """Width of the features the head reads."""
        return self.width


class CifarResnetConfig(Section):
    """The ResNets for CIFAR: depth 8, 14, 20, 32, 44, 56, ...; 64 features."""

    name: Literal["cifar_resnet"]
    depth: int = Field(20, ge=8, le=1202, description="6 n + 2 layers")

    @model_validator(mode="after")
    def _whole_blocks(self) -> "CifarResnetConfig":
        if (self.depth - 2) % 6:
            raise ValueError(
                f"depth: {self.depth} is no depth of a CIFAR ResNet; must be 6 n + 2: 8, 14, 20, 32, 44, 56"
            )
        return self

    @property
    def feature_width(self) -> int:
        """Width of the features the head reads."""
        return 64


class TorchvisionConfig(Section):
    """Any classifier of torchvision by its name there.

    Its last layer is replaced by a linear projection to `width` features; where the layer before it has that width
    already, nothing takes its place. `weights` is null, `imagenet` or a file; GoogLeNet and Inception v3 with weights
    also change their input, as torchvision's do.
    """

    name: str
    weights: str | None = Field(None, description="start weights: null, imagenet, or a .pth or .safetensors file")
    width: int = Field(512, ge=1, le=16384, description="features: a linear projection where the network has others")

    @property
    def feature_width(self) -> int:
        """Width of the features the head reads."""
        return self.width


def _branch_kind(section: Any) -> str | None:
    name = section.get("name") if isinstance(section, dict) else getattr(section, "name", None)
    if name in ("mlp", "cnn", "cifar_resnet"):
        return str(name)
    return "torchvision" if isinstance(name, str) and _TORCHVISION.match(name) else None


BranchConfig: TypeAlias = Annotated[
    Annotated[MlpConfig, Tag("mlp")]
    | Annotated[CnnConfig, Tag("cnn")]
    | Annotated[CifarResnetConfig, Tag("cifar_resnet")]
    | Annotated[TorchvisionConfig, Tag("torchvision")],
    Discriminator(_branch_kind),
]

KINDS: dict[str, dict[str, type[Section]]] = {
    "dataset": {
        name: kind
        for kind in typing.get_args(typing.get_args(DatasetConfig)[0])
        for name in typing.get_args(kind.model_fields["name"].annotation)
    },
    "model.shallow": {
        typing.get_args(kind)[1].tag: typing.get_args(kind)[0]
        for kind in typing.get_args(typing.get_args(BranchConfig)[0])
    },
}
"""The sections that a name chooses: dotted key to kind by name."""
KINDS["model.deep"] = KINDS["model.target"] = KINDS["model.shallow"]


class ModelConfig(Section):
    """The three branches; their features must have one width, for they share one head."""

    shallow: BranchConfig = Field(
        MlpConfig(name="mlp", depth=3), description="stage 1 of DeNetDM: learns the target attribute"
    )
    deep: BranchConfig = Field(MlpConfig(name="mlp", depth=5), description="stage 1: learns the bias attribute")
    target: BranchConfig = Field(
        MlpConfig(name="mlp", depth=5), description="the model to ship: stage 2 of DeNetDM, and the other methods"
    )

    @model_validator(mode="after")
    def _one_feature_width(self) -> "ModelConfig":
        widths = {name: getattr(self, name).feature_width for name in type(self).model_fields}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise ValueError(f"the branches share one head and must end in the same width, but they end in: {found}")
        return self

    @property
    def convolutional(self) -> bool:
        """Whether a branch has convolutions, be it to cut patches; they are fastest on batches with channels last."""
        return any(branch.name != "mlp" for branch in (self.shallow, self.deep, self.target))


Optimizer = Literal["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD", "Adagrad", "Adadelta", "Adamax"]


class MethodSettings(Section):
    """The section of a method: what every method has; a method overrides defaults and adds its own keys."""

    epochs: int = Field(100, ge=1, description="passes over the training images (--epochs)")
    batch_size: int = Field(64, ge=1, description="images of a training step, over all ranks (--batch-size)")
    optimizer: Optimizer = Field("Adam", description="of torch.optim; L2 weight decay but for AdamW")
    learning_rate: float = Field(1e-3, gt=0, description="constant")
    momentum: float = Field(0.0, ge=0, lt=1, description="of SGD and RMSprop; others have none")
    weight_decay: float = Field(0.0, ge=0, description="as torch.optim takes it")
    drop_last: bool = Field(False, description="leave out the last, incomplete batch of an epoch")
    selection_metric: str = Field(description="PREDICTOR.METRIC that the rules valid and paper maximize")


PLACE = ("device", "threads", "checkpoint_minutes", "stop_signals", "out", "dataset.root", "data.cache")
"""Keys that say where and how a run happens, not what it computes."""


class ComputeConfig(Section):
    """How a step is computed; weights, optimiser and evaluation are always fp32."""

    precision: Literal["fp32", "bf16"] = Field("fp32", description="of a training step; bf16 is autocast (--precision)")
    compile: bool = Field(False, description="through torch.compile: slow to start, then faster on a GPU")
    sync_batchnorm: bool = Field(False, description="batch statistics over all ranks instead of over each one's share")


def section_of(method: str) -> str:
    """The section of the configuration that a method has, by the method's name."""
    return method.replace("-", "_")


class Config(Section):
    """Everything a run depends on; `config_schema` adds a section for each method."""

    dataset: DatasetConfig = Field(description="the data set, by name")
    data: DataConfig = Field(DataConfig(), description="how images become batches; augmentation is for training alone")
    model: ModelConfig = Field(ModelConfig(), description="the networks; all of them end in features of one width")
    selection: SelectionRule = Field(
        "last",
        description="epoch that is reported, exported and distilled from: last (nothing selected), valid (best on "
        "held-out images), paper (best on the evaluation split: SELECTED ON TEST DATA) (--select)",
    )
    compute: ComputeConfig = Field(ComputeConfig(), description="how a training step is computed; evaluation is fp32")
    seed: int = Field(0, ge=0, lt=2**63, description="of initial weights, data order and augmentation (--seed)")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        title="auto, cpu, cuda, cuda:N or mps",
        description="auto, cpu, cuda, cuda:N or mps (--device)",
    )
    threads: int = Field(1, ge=0, le=1024, description="CPU threads; 0 is all; equal bits need an equal number")
    checkpoint_minutes: float = Field(10, gt=0, description="within an epoch, time between two resume states")
    stop_signals: list[Literal["USR2", "ALRM", "QUIT", "XCPU"]] = Field(
        ["USR2"], description="signals that stop resumably, besides INT, TERM, HUP and USR1"
    )
    out: str = Field("runs", description="where run folders go (--out)")

    def settings(self, method: str) -> MethodSettings:
        """The section of a method by the method's name."""
        section: MethodSettings = getattr(self, section_of(method))
        return section

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.model_dump(),)


def _unpickled(tree: dict[str, Any]) -> Config:
    """A configuration that another process sent: pickle finds no class that is made at run time."""
    return config_schema().model_validate(tree)


@functools.cache
def config_schema() -> type[Config]:
    """`Config` with a section for each registered method, named after it.

    The registry lies above this room, and is data here: it is looked up by name when a configuration is first read.
    """
    methods = importlib.import_module("denetdm_cli.methods").METHODS
    sections: dict[str, Any] = {
        section_of(method.name): (method.Settings, Field(method.Settings(), description=method.title))
        for method in methods.values()
    }
    return create_model("Config", __base__=Config, **sections)
