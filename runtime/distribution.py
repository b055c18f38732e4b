"""Windrow is an application with its own environment: its packages must all be its own.

The top-level names (`schemas`, `streams`, …) are plain words. If another distribution in the same
environment brings one of them, Python may import that one; starting then would be unsafe.
"""

from __future__ import annotations

import importlib

_PACKAGES = ("schemas", "collectors", "streams", "controllers", "actuators", "runtime", "twin")


class ForeignPackage(RuntimeError):
    """One of the packages comes from somewhere else; the text says which and what to do."""


def check_distribution() -> None:
    """Raises ForeignPackage unless every package carries Windrow's marker."""
    for name in _PACKAGES:
        package = importlib.import_module(name)
        if getattr(package, "__distribution__", None) != "windrow":
            raise ForeignPackage(
                f"the package {name!r} at {package.__file__} is not Windrow's: "
                "install Windrow into an environment of its own"
            )
