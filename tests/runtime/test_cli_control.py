"""`windrow control` refuses in words what it cannot run on; how it runs is in tests/integration."""

from __future__ import annotations

import builtins
import pathlib
from typing import Any

import pytest
from support.rigs import row_text

from runtime.bus.provision import Report
from runtime.cli import controlling
from runtime.cli.app import run

BROKERS = '[kafka]\nservers = ["127.0.0.1:1"]\n'


def written(folder: pathlib.Path, kafka: str = BROKERS) -> str:
    (folder / "site.toml").write_text(row_text(2, budget_w=9_000.0))
    config = folder / "worker.toml"
    config.write_text(f'site = "site.toml"\nstate_dir = "state"\n{kafka}')
    return str(config)


def test_a_configuration_without_brokers_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, "")
    assert run(["control", "--config", config]) == 2
    assert (
        capsys.readouterr().err
        == f"{config}: kafka is missing: write [kafka] with servers, the site's brokers\n"
    )


def test_brokers_that_are_not_there_are_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.bus.provision._PATIENCE_S", 0.2)
    assert run(["control", "--config", written(tmp_path)]) == 2
    assert capsys.readouterr().err == "Kafka at 127.0.0.1:1 is not there (connection refused)\n"


def test_without_faust_one_is_told_what_to_install(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any, **others: Any) -> Any:
        if name.startswith("runtime.hosts.faust_kafka"):
            raise ImportError(name="faust")
        return real(name, *rest, **others)

    monkeypatch.setattr(controlling, "ensure", lambda kafka: Report())
    monkeypatch.setattr(builtins, "__import__", lacking)
    assert run(["control", "--config", written(tmp_path)]) == 2
    said = "Faust is not installed here (faust): pip install -e '.[kafka]' in Windrow's clone\n"
    assert capsys.readouterr().err == said


def test_a_state_directory_in_use_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.state_dir import StateDir

    monkeypatch.setattr(controlling, "ensure", lambda kafka: Report())
    config = written(tmp_path)
    with StateDir.made(tmp_path / "state").locked():
        assert run(["control", "--config", config]) == 2
    assert "a host is running on this state directory" in capsys.readouterr().err
