"""What a configuration may hold: typed, frozen sections, and the choices that are made by name."""

import re
import typing
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

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


class _Dataset(Section):
    root: str


class ColoredMnistConfig(_Dataset):
    """Colored MNIST, made from MNIST."""

    name: Literal["coloredmnist"]
    ratio: float = Field(gt=0, lt=1)
    severity: int = Field(ge=1, le=5)
    seed: int = Field(ge=0, lt=2**32)


class CorruptedCifar10Config(_Dataset):
    """Corrupted CIFAR-10, made from CIFAR-10."""

    name: Literal["corruptedcifar10"]
    type: Literal[0, 1]
    ratio: float = Field(gt=0, lt=1)
    severity: int = Field(ge=1, le=4)
    seed: int = Field(ge=0, lt=2**32)


class DfaConfig(_Dataset):
    """Colored MNIST or Corrupted CIFAR-10 as DFA publishes them, imported as they are."""

    name: Literal["cmnist", "cifar10c"]
    ratio: float = Field(gt=0, lt=1)


class _Imported(_Dataset):
    """A data set that is imported from files: every image is resized once, to `size` by `size` pixels."""

    size: int = Field(ge=8, le=2048)
    fit: Literal["stretch", "crop"]


class BffhqConfig(_Imported):
    """BFFHQ."""

    name: Literal["bffhq"]


class BarConfig(_Imported):
    """BAR; without a ratio the original, whose training images have no bias labels."""

    name: Literal["bar"]
    ratio: Annotated[float, Field(gt=0, lt=1)] | None


class CelebaConfig(_Imported):
    """CelebA, hair colour by gender; `subsample` as Hong and Yang do."""

    name: Literal["celeba"]
    subsample: bool
    seed: int = Field(ge=0, lt=2**32)


class WaterbirdsConfig(_Imported):
    """Waterbirds."""

    name: Literal["waterbirds"]


class FolderConfig(_Imported):
    """Images of one's own, kept as `folder` below the root; shares of what the source does not split itself."""

    name: Literal["folder"]
    folder: str = Field(pattern=r"^\w[\w .+-]*$", description="the plain name of a folder, without / or a dot in front")
    valid_share: float = Field(ge=0, lt=1)
    test_share: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0, lt=2**32)


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

    cache: Literal["auto", "device", "host", "stream"]
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None
    random_crop_padding: int = Field(ge=0, le=1024)
    random_resized_crop: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] | None
    horizontal_flip: bool

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
    depth: int = Field(ge=2, le=100)
    width: int = Field(ge=1, le=16384)

    @property
    def feature_width(self) -> int:
        """Width of the features the head reads."""
        return self.width


class CnnConfig(Section):
    """The paper's shallow convolutional networks: 3 layers (Corrupted CIFAR-10) or 4 (BFFHQ); `width` is the last's."""

    name: Literal["cnn"]
    depth: Literal[3, 4]
    width: int = Field(ge=1, le=16384)

    @property
    def feature_width(self) -> int:
        """Width of the features the head reads."""
        return self.width


class CifarResnetConfig(Section):
    """The ResNets for CIFAR: depth 8, 14, 20, 32, 44, 56, ...; 64 features."""

    name: Literal["cifar_resnet"]
    depth: int = Field(ge=8, le=1202)

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
    weights: str | None
    width: int = Field(ge=1, le=16384)

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

    shallow: BranchConfig
    deep: BranchConfig
    target: BranchConfig

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


class StageConfig(Section):
    """What both stages have: Adam with coupled weight decay and a constant learning rate."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    drop_last: bool


class TrainPoeConfig(StageConfig):
    """Stage 1 (paper section 3.1)."""

    selection_metric: Literal[
        "shallow.conflicting", "shallow.unbiased", "shallow.worst_group", "shallow.accuracy", "shallow.worst_class",
        "product.conflicting", "product.unbiased", "product.worst_group", "product.accuracy", "product.worst_class",
    ]  # fmt: skip


class DistillConfig(StageConfig):
    """Stage 2 (paper section 3.2)."""

    selection_metric: Literal[
        "target.unbiased", "target.conflicting", "target.worst_group", "target.accuracy", "target.worst_class"
    ]
    teacher: Literal["selected", "last"]
    w_poe: float = Field(ge=0)
    w_dist: float = Field(ge=0)
    tau: float = Field(gt=0)

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillConfig":
        if self.w_poe == 0 and self.w_dist == 0:
            raise ValueError("w_poe and w_dist are both 0, so there is nothing to train; set one above 0")
        return self


PLACE = ("device", "threads", "checkpoint_minutes", "stop_signals", "out", "dataset.root", "data.cache")
"""Keys that say where and how a run happens, not what it computes."""


class ComputeConfig(Section):
    """How a step is computed; weights, optimiser and evaluation are always fp32."""

    precision: Literal["fp32", "bf16"]
    compile: bool
    sync_batchnorm: bool


class Config(Section):
    """Everything a run depends on."""

    dataset: DatasetConfig
    data: DataConfig
    model: ModelConfig
    train_poe: TrainPoeConfig
    distill: DistillConfig
    selection: SelectionRule
    compute: ComputeConfig
    seed: int = Field(ge=0, lt=2**63)
    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:N or mps")
    threads: int = Field(ge=0, le=1024)
    checkpoint_minutes: float = Field(gt=0)
    stop_signals: list[Literal["USR2", "ALRM", "QUIT", "XCPU"]]
    out: str
