"""Files of the authors' models, and folders that they are fetched into."""

import hashlib
import io
import zipfile
from pathlib import Path

import torch
from loopback import Heard

from denetdm_cli.hub.official import ARCHITECTURES, Dataset, Official, Stage, to_official
from denetdm_cli.hub.pretrained import RECORDS, get_pretrained
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel

PATH = "colored_mnist/debiased_model.th"
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


def official(seed: int, dataset: Dataset = "coloredmnist", stage: Stage = "distill") -> bytes:
    """A file as the official code writes it."""
    made = ARCHITECTURES[dataset]
    build = TargetModel if stage == "distill" else ProductOfExperts
    model = build(made.model, made.image_shape, made.classes, seed)
    buffer = io.BytesIO()
    torch.save(to_official(model.state_dict(), Official(dataset, stage)), buffer)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def have(folder: Path, name: str = "coloredmnist", **options: object) -> Heard:
    heard = Heard()
    path = get_pretrained(name, folder, reporter=heard, **options)  # type: ignore[arg-type]
    assert path == folder / f"{name}.safetensors"
    assert path.is_file()
    return heard


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part(folder: Path) -> Path:
    """What is kept of a broken transfer."""
    (found,) = folder.glob("coloredmnist.th.download-*.part")
    return found


WHOLE = ["coloredmnist.safetensors", "coloredmnist.th", RECORDS]
