"""Packages of plain names: each has to be Windrow's own, or nothing starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import schemas
from runtime.distribution import ForeignPackage, check_distribution


def test_in_its_own_environment_every_package_is_its_own() -> None:
    check_distribution()


def test_an_unmarked_package_is_named_with_its_place_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(schemas, "__distribution__")
    with pytest.raises(ForeignPackage) as refused:
        check_distribution()
    assert str(refused.value) == (
        f"the package 'schemas' at {schemas.__file__} is not Windrow's: install Windrow into an environment "
        "of its own"
    )


def test_a_package_that_stands_before_ours_on_the_path_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "__init__.py").write_text("", encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from runtime.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"the package 'twin' at {tmp_path}/twin/__init__.py is not Windrow's: "
        "install Windrow into an environment of its own\n"
    )
