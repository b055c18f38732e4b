"""The packages are plain top-level names, so another distribution could shadow one: they carry a mark."""

import importlib
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support.counterparts import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_says_which_distribution_it_belongs_to(name: str) -> None:
    assert importlib.import_module(name).__distribution__ == "windrow"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_comes_from_this_checkout(name: str) -> None:
    origin = importlib.import_module(name).__file__
    assert origin is not None
    assert Path(origin).resolve() == PROJECT / name / "__init__.py"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_says_what_it_is_for(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_the_installed_metadata_is_that_of_this_pyproject() -> None:
    installed = metadata.distribution("windrow")
    assert installed.version == PYPROJECT["project"]["version"], "install again: pip install -e '.[dev]'"
    scripts = installed.entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == PYPROJECT["project"]["scripts"]


def test_dependencies_have_lower_bounds_and_no_upper_ones() -> None:
    project = PYPROJECT["project"]
    asked = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    outside = [requirement for requirement in asked if not requirement.startswith("windrow[")]
    assert [r for r in outside if ">=" not in r or any(pin in r for pin in ("<", "==", "~=", ","))] == []
