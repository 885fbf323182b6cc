"""Train image classifiers that do not lean on shortcuts (DeNetDM, NeurIPS 2024).

The public names are those of `denetdm_cli.api`, imported when first used, so that commands start fast.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from denetdm_cli.api import (
        evaluate,
        export,
        list_methods,
        list_presets,
        load,
        load_dataset,
        make_dataset,
        predict,
        train,
    )

__all__ = [
    "evaluate",
    "export",
    "list_methods",
    "list_presets",
    "load",
    "load_dataset",
    "make_dataset",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from denetdm_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
