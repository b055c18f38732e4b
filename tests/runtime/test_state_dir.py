"""What outlives a host's process: one host at a time, epochs that only rise, what it last ran with."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import subprocess
import sys

import pytest
from support.sites import ONE_HOST

from runtime.config import ConfigError, single_host
from runtime.state_dir import Busy, StateDir

HOLD = """
import pathlib, sys
from runtime.state_dir import StateDir
with StateDir(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_state_directory_is_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    state = StateDir.made(tmp_path / "new" / "state")
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert state.agent("ams1/row-b/r07/h03") == state.path / "hosts" / "ams1__row-b__r07__h03.json"


def test_where_no_host_has_run_there_is_nobody_to_speak_to(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no host has run on this state directory"):
        StateDir.found(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_that_cannot_be_made_is_refused_in_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file/state: the state directory cannot be made: Not a directory"):
        StateDir.made(tmp_path / "file" / "state")


def test_two_hosts_never_run_on_one_state(tmp_path: pathlib.Path) -> None:
    state = StateDir.made(tmp_path / "state")
    assert not state.busy()
    with state.locked():
        assert state.busy()
        with pytest.raises(Busy, match="a host is running on this state directory"), state.locked():
            pass
    assert not state.busy()


def test_a_disk_that_has_gone_read_only_is_locked_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir.made(tmp_path / "state")
    with state.locked():
        pass
    opened = pathlib.Path.open

    def read_only(path: pathlib.Path, mode: str = "r") -> object:
        if mode != "r":
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, mode)

    monkeypatch.setattr(pathlib.Path, "open", read_only)
    with state.locked(), pytest.raises(Busy), state.locked():
        pass


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: pathlib.Path) -> None:
    state = StateDir.made(tmp_path / "state")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        assert state.busy()
    finally:
        holder.kill()
        holder.communicate()
    assert not state.busy()


def test_each_start_has_a_higher_epoch_than_every_one_before(tmp_path: pathlib.Path) -> None:
    state = StateDir.made(tmp_path / "state")
    assert [state.next_epoch() for _ in range(3)] == [1, 2, 3]
    assert StateDir.found(state.path).next_epoch() == 4


@pytest.mark.parametrize("content", [b"", b"seven\n", b"\xff"])
def test_an_epoch_that_cannot_be_read_is_never_guessed(tmp_path: pathlib.Path, content: bytes) -> None:
    state = StateDir.made(tmp_path / "state")
    (state.path / "epoch").write_bytes(content)
    with pytest.raises(ConfigError, match=r"epoch: must hold a whole number, the epoch of the last start"):
        state.next_epoch()
    assert (state.path / "epoch").read_bytes() == content


def test_the_epoch_is_not_used_before_it_is_on_disk(tmp_path: pathlib.Path) -> None:
    state = StateDir.made(tmp_path / "state")
    (state.path / f".epoch.{os.getpid()}").mkdir()  # the place to write it is taken
    with pytest.raises(ConfigError, match=r"epoch: cannot be written: Is a directory"):
        state.next_epoch()


def test_the_configuration_last_run_is_found_again_from_anywhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir.made(tmp_path / "state")
    monkeypatch.chdir(ONE_HOST.parent)
    config = single_host(pathlib.Path(ONE_HOST.name), None, pathlib.Path("state"))
    state.keep_config(config)
    monkeypatch.chdir(tmp_path)

    kept = StateDir.found(state.path).config()

    assert kept.site == ONE_HOST
    assert kept.state_dir == ONE_HOST.parent / "state"
    assert kept.policy is None
    assert kept.actuators == config.actuators


@pytest.mark.parametrize("content", [None, b"{", b'{"name": 3}'])
def test_without_the_configuration_last_run_one_has_to_be_named(
    tmp_path: pathlib.Path, content: bytes | None
) -> None:
    state = StateDir.made(tmp_path / "state")
    if content is not None:
        (state.path / "host.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"does not say what the host last ran with .*: name its --config"):
        state.config()
