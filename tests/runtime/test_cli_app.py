"""The command line as a whole: what it offers, and how it refuses."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from support.machines import WINDROW
from support.sites import DEMO

from runtime.cli import main
from runtime.cli.app import COMMANDS, run


def test_help_tells_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    for name in COMMANDS:
        assert f"│ {name} " in told
    assert "Give hosts back" in told


@pytest.mark.parametrize(
    "command",
    [*([name] for name in COMMANDS), *(["audit", name] for name in ("why", "who", "alerts", "verify"))],
)
def test_every_command_and_every_option_is_explained(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: windrow {' '.join(command)}")
    options = [line for line in told.splitlines() if line.startswith(("│ --", "│ *  "))]
    assert all(len(line.strip("│ ").split("  ")) > 1 for line in options), options


def test_a_command_that_is_loaded_later_is_explained_beside_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["twin", "--help"]) == 0
    assert "│ fidelity  Compare the twin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["rnu"], 'Unknown command "rnu". Did you mean "run"?'),
        (["replay"], 'Command "replay" parameter RECORDING requires an argument.'),
        (["run", "--dry"], "Unknown option: --dry. Did you mean --dry-run?"),
        (
            ["pin", "a", "--max-mhz", "fast", "--minutes", "1", "--reason", "x"],
            'Invalid value for --max-mhz: unable to convert "fast" into int.',
        ),
        (["run"], "name a site file, or a host's configuration with --config"),
        (
            ["run", "site.toml", "--config", "host.toml"],
            "--config names the site, the policy and the state directory: leave them out",
        ),
        (["run", "nowhere.toml"], "nowhere.toml: the site file cannot be read: No such file or directory"),
        (["run", "--config", "nowhere.toml"], "nowhere.toml: the configuration cannot be read: No such file"),
        (["release", "--reason", "x"], "name a host, rack or row to release, or say --all"),
        (["release", "a", "--all", "--reason", "x"], "name a host, rack or row to release, or say --all"),
        (
            ["pin", "a", "--max-mhz", "0", "--minutes", "1", "--reason", "x"],
            "--minutes and --max-mhz must be",
        ),
        (["experiment", "row-check", "--seeds", "-3"], 'Invalid value "-3" for --seeds. Must be >= 0.'),
        (["audit", "alerts", "--ledger", "none.sqlite"], "none.sqlite: there is no ledger here"),
        (["record", "out", "--twin", "a", "--site", "b"], "--twin names the site to simulate: leave --site"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    tokens: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(said)
    assert list(tmp_path.iterdir()) == [], "what was refused left nothing behind"


def test_an_address_nobody_can_listen_on_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    site.write_text(_one_host(), encoding="utf-8")
    assert run(["run", str(site), "--state-dir", str(tmp_path / "state"), "--listen", "9464"]) == 2
    assert capsys.readouterr().err.startswith(
        '--listen = "9464": must be host:port, such as "127.0.0.1:9464"'
    )


def _one_host() -> str:
    text = DEMO.read_text(encoding="utf-8")
    one = text.replace("r[01-13]", "r01").replace("h[01-02]", "h01")
    return one[: one.index("[[racks.hosts]]", one.index("[[racks.hosts]]") + 1)]


def test_the_installed_command_answers() -> None:
    done = subprocess.run([WINDROW, "check", DEMO], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.30×, oversubscribed" in done.stdout


def test_asking_the_ledger_waits_for_no_plotting_or_forecasting_library() -> None:
    """Who asks at night, on a machine in trouble, asks often."""
    code = (
        "import sys; from runtime.cli.app import run; "
        "assert run(['audit', 'alerts', '--ledger', 'none']) == 2; "
        "assert run(['pin', 'x', '--max-mhz', '1', '--minutes', '1', '--reason', 'x']) == 2; "
        "print([name for name in ('matplotlib', 'sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_a_foreign_package_stops_everything_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import streams

    monkeypatch.setattr(streams, "__distribution__", "another")
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "the package 'streams' at " in capsys.readouterr().err
