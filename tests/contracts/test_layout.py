"""The shape of the tree: which packages there are, and what their modules may be called."""

import sys
import tomllib
from pathlib import Path

import pytest
from support.counterparts import PROJECT

DESIGNED = {"schemas", "collectors", "streams", "controllers", "actuators", "runtime", "twin"}
# Names that say nothing about what is inside, and so collect what belongs elsewhere.
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc", "data"}
# Import names of what Windrow installs: a module of that name misleads the reader of an import.
LIBRARIES = {
    "cyclopts",
    "matplotlib",
    "msgspec",
    "numpy",
    "prometheus_client",
    "pynvml",
    "rich",
    "scipy",
    "sklearn",
}


def modules_of(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


def name_of(module: Path) -> str:
    return module.parent.name if module.name == "__init__.py" else module.stem


def test_the_wheel_holds_the_designed_packages_and_no_others() -> None:
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == DESIGNED


@pytest.mark.parametrize("package", sorted(DESIGNED))
def test_the_package_is_there(package: str) -> None:
    assert (PROJECT / package / "__init__.py").is_file()


@pytest.mark.parametrize("package", sorted(DESIGNED))
def test_every_folder_with_code_is_a_package(package: str) -> None:
    folders = {module.parent for module in modules_of(package)}
    assert [str(f.relative_to(PROJECT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


@pytest.mark.parametrize("package", sorted(DESIGNED))
def test_no_module_has_a_name_that_says_nothing(package: str) -> None:
    assert [str(m.relative_to(PROJECT)) for m in modules_of(package) if name_of(m) in VAGUE] == []


@pytest.mark.parametrize("package", sorted(DESIGNED))
def test_no_module_has_the_name_of_a_library(package: str) -> None:
    taken = LIBRARIES | sys.stdlib_module_names
    assert [str(m.relative_to(PROJECT)) for m in modules_of(package) if name_of(m) in taken] == []


def test_tests_are_no_package() -> None:
    """With an `__init__.py` a folder of tests would hide the package that it mirrors."""
    assert sorted((PROJECT / "tests").rglob("__init__.py")) == []


def test_the_drawn_tree_has_every_module_and_no_other() -> None:
    text = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn: set[str] = set()
    package = ""
    for line in text.split("## The tree")[1].split("```")[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        if name and not line.startswith(" "):
            package = name
        elif package.rstrip("/") in DESIGNED and not name.endswith("/"):
            drawn.add(package + name)
    paths = {str(m.relative_to(PROJECT).with_suffix("")) for each in DESIGNED for m in modules_of(each)}
    assert drawn == {path for path in paths if not path.endswith("__init__")}
