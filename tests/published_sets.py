"""What the tests of imported data sets share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.importers.listing import Listing
from denetdm_cli.utils.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(listing: Listing, split: str) -> list[tuple[str, int, int | None]]:
    return [(listing.short(item), item.target, item.bias) for item in listing.splits[split]]


def config(name: str, **changes: Any) -> Any:
    """The `dataset` section of a preset, with changes."""
    return load_config(preset_path(name)).dataset.model_copy(update=changes)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as error:
        call()
    assert error.value.fix
    return error.value.what
