"""The list of models that the authors published. Shell completion imports it, so it imports no heavy package."""

from dataclasses import dataclass

from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.log import shown

DRIVE_ID = "1lajUDMpj9g0wwS_eFMqNHyVczSVrdwLJ"
DRIVE_ADDRESS = f"https://drive.google.com/drive/folders/{DRIVE_ID}"


@dataclass(frozen=True)
class PublishedModel:
    """A model in the authors' Google Drive folder.

    Attributes:
        name: the name in commands.
        path: the file in the authors' folder.
        dataset: the training data set.
        stage: the training stage.
        accuracy: the paper's accuracy in per cent.
        metric: the kind of that accuracy.
        note: unknown facts about the file.
    """

    name: str
    path: str
    dataset: str
    stage: str
    accuracy: float
    metric: str
    note: str

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.path.rpartition("/")[2]


_UNKNOWN_RATIO = "mean of 5 seeds in the paper; of which seed and conflict ratio the file is, is not published"
_UNKNOWN_SEED = "mean of 5 seeds in the paper; of which seed the file is, is not published"
_UNBIASED = "unbiased test accuracy on {} at 1 % conflicting"

PUBLISHED = tuple(
    PublishedModel(name, f"{folder}/debiased_model.th", name, "distill", accuracy, metric, note)
    for name, folder, accuracy, metric, note in (
        ("coloredmnist", "colored_mnist", 85.22, _UNBIASED.format("Colored MNIST"), _UNKNOWN_RATIO),
        ("corruptedcifar10", "corrupted_cifar10", 44.20, _UNBIASED.format("Corrupted CIFAR-10"), _UNKNOWN_RATIO),
        ("bffhq", "bffhq", 75.7, "accuracy on the conflicting test images of BFFHQ", _UNKNOWN_SEED),
    )
)


def named(name: str) -> PublishedModel:
    """A published model by its name.

    Raises:
        ConfigError: there is none.
    """
    for published in PUBLISHED:
        if published.name == name:
            return published
    raise ConfigError(
        f"no published model is named {shown(name)!r}", f"Known are {', '.join(known.name for known in PUBLISHED)}."
    )
