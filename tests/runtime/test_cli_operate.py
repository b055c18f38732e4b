"""What people say on the command line is handed to the host of a state directory, running or not."""

from __future__ import annotations

import getpass
import pathlib

import pytest
from support.machines import HOST, SITE

from runtime.cli.app import run
from runtime.config import single_host
from runtime.state_dir import StateDir
from schemas import codec
from schemas.envelope import Event
from schemas.operators import Pin, ResetBlastRadius, Resume, Unpin


@pytest.fixture
def state(tmp_path: pathlib.Path) -> StateDir:
    """The state directory of a host that has run, and runs no more."""
    site = tmp_path / "site.toml"
    site.write_text(SITE.format(budget_w=2_400), encoding="utf-8")
    made = StateDir.made(tmp_path / "state")
    made.keep_config(single_host(site, None, made.path))
    return made


def said(state: StateDir) -> list[Event]:
    """What lies in the inbox."""
    return [codec.decode(file.read_bytes()) for file in sorted((state.path / "inbox").glob("*.json"))]


def test_a_pin_is_handed_in_with_its_end_its_reason_and_who_said_it(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--max-mhz", "1200", "--minutes", "30", "--reason", "hot aisle", "--state-dir", str(state.path)]
    assert run(["pin", HOST, *given]) == 0
    (pin,) = said(state)
    assert isinstance(pin, Pin)
    assert (pin.subject, pin.max_mhz, pin.reason, pin.by) == (HOST, 1200, "hot aisle", getpass.getuser())
    assert pin.expires_at - pin.at == 30 * 60_000
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"no host is running on {state.path}: it will be heard at the next start"
    assert told[1].startswith(f"asked to hold {HOST} at or below 1200 MHz for 30.0 min, until 20")


def test_everything_else_that_people_say_is_handed_in(state: StateDir) -> None:
    where = ["--state-dir", str(state.path), "--by", "ada"]
    assert run(["unpin", "lab/row-a", *where]) == 0
    assert run(["reset-blast-radius", "lab/row-a", "--reason", "a bad rack", *where]) == 0
    assert run(["resume", "lab", *where]) == 0
    words = {type(event): event for event in said(state)}
    assert words.keys() == {Unpin, ResetBlastRadius, Resume}
    assert all(getattr(event, "by", "") == "ada" for event in words.values())
    assert words[Resume].subject == "lab"


def test_nothing_is_said_of_a_running_host_being_away(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with state.locked():
        assert run(["unpin", HOST, "--state-dir", str(state.path)]) == 0
    assert capsys.readouterr().out == f"asked to take the pins of {HOST} back\n"


@pytest.mark.parametrize("command", ["pin", "unpin", "reset-blast-radius", "resume", "release"])
def test_a_path_that_the_host_does_not_have_is_refused_and_not_handed_in(
    state: StateDir, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"pin": ["--max-mhz", "1", "--minutes", "1"]}.get(command, [])
    reason = ["--reason", "x"] if command not in ("unpin", "resume") else []
    if command == "release":  # which reads the policy too, and the boards have no published clocks
        config = state.path.parent / "policy.toml"
        config.write_text("allow_fraction_defaults = true\n", encoding="utf-8")
        state.keep_config(single_host(state.path.parent / "site.toml", config, state.path))
    assert run([command, "lab/row-z", *given, *reason, "--state-dir", str(state.path)]) == 2
    assert capsys.readouterr().err == (
        "site lab has no host at or below 'lab/row-z'; its rows are lab/row-a\n"
    )
    assert said(state) == []


@pytest.mark.parametrize(
    "command",
    [
        ["unpin", HOST],
        ["resume", HOST],
        ["release", HOST, "--reason", "x"],
        ["pin", HOST, "--max-mhz", "1", "--minutes", "1", "--reason", "x"],
    ],
)
def test_a_mistyped_state_directory_is_refused_and_not_made(
    command: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--state-dir", str(tmp_path / "stat")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/stat: no host has run on this state directory\n"
    assert not (tmp_path / "stat").exists()
