"""Work spread over processes: nothing told is missed, and nothing outlives whoever began it."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from support.at_work import be_killed, count, refuse, stay
from support.machines import eventually
from support.rigs import two_rows_text

from runtime.workers import WorkerLost, spread


def test_all_that_a_work_told_is_heard_before_it_is_done_and_answers_come_in_the_order_asked() -> None:
    heard: list[int] = []
    done: list[int] = []

    def ended(number: int) -> None:
        done.append(number)
        assert len(heard) >= sum(done), "a bar that never reaches its end"

    asked = [40, 1, 0, 7, 300]
    found = spread(
        [functools.partial(count, each) for each in asked], workers=2, told=heard.append, done=ended
    )
    assert found == asked
    assert sorted(done) == sorted(asked)
    assert len(heard) == sum(asked)


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [(be_killed, WorkerLost, "out of memory"), (refuse, ValueError, "no such row")],
)
def test_one_that_fails_ends_the_others(
    work: Callable[[Callable[[int], None]], None], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        spread([work, stay, stay], workers=2, told=lambda word: None)
    assert multiprocessing.active_children() == []


def test_ctrl_c_ends_all_at_once_and_without_a_word_of_the_workers(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(word: int) -> None:
        """As a terminal does it: everybody is told, and the one that people see breaks off."""
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread([stay, stay, stay], workers=2, told=interrupt)
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


def _command(name: str, folder: pathlib.Path) -> list[str]:
    site = folder / "two.toml"
    site.write_text(two_rows_text(), encoding="utf-8")
    return {
        "demo": ["demo", "--out", str(folder / "out")],
        "experiment": ["experiment", "polca", "--quick", "--out", str(folder / "out")],
        "rehearse": ["rehearse", "flash-crowd", "--site", str(site)],
    }[name]


@contextlib.contextmanager
def _at_work(name: str, folder: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """A command whose first worker has begun, in a session of its own."""
    code = "from runtime.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *_command(name, folder)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as started:
        try:
            eventually(lambda: _members(started.pid) >= 3, "it runs with its workers", within_s=90.0)
            yield started
        finally:
            started.kill()


def _members(session: int) -> int:
    """Living processes of a session."""
    living = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            living += int(of) == session and state != "Z"
    return living


COMMANDS = pytest.mark.parametrize("name", ["demo", "experiment", "rehearse"])


@pytest.mark.slow
@COMMANDS
def test_nothing_outlives_a_command_that_was_killed(name: str, tmp_path: pathlib.Path) -> None:
    with _at_work(name, tmp_path) as started:
        started.kill()
        eventually(lambda: _members(started.pid) == 0, "nothing of it runs", within_s=60.0)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@COMMANDS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_broken_off_while_its_workers_begin_ends_without_a_traceback_and_leaves_nothing(
    number: signal.Signals, name: str, tmp_path: pathlib.Path
) -> None:
    with _at_work(name, tmp_path) as started:
        os.killpg(started.pid, number)
        _, said = started.communicate(timeout=90.0)
        assert started.returncode == 130
        assert "Traceback" not in said
        eventually(lambda: _members(started.pid) == 0, "nothing of it runs", within_s=60.0)
        assert list(tmp_path.glob("windrow-*")) == [], "no folder for the time being"
