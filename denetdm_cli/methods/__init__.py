"""What is trained and how: one file a method, behind one contract.

`METHODS` is the registry. A new module in this package that defines a `Method` is in it; nothing else names a method.
"""

import importlib
import pkgutil

from denetdm_cli.methods.base import Method


def _registered() -> dict[str, type[Method]]:
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    found = [kind for kind in Method.__subclasses__() if kind.__module__.startswith(__name__)]
    before = {kind.name: kind.starts_from for kind in found}
    return {kind.name: kind for kind in sorted(found, key=lambda kind: (before[kind.name] is not None, kind.name))}


METHODS: dict[str, type[Method]] = _registered()
