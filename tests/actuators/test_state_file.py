"""The file that outlives an agent."""

from pathlib import Path

import msgspec
import pytest
from support.agents import T0, brake, limit, lock

from actuators.base import Found
from actuators.state_file import RECENT, VERSION, Kept, StateFile, Unreadable

HOST = "ams1/row-a/r01/h01"


def full(host: str = HOST) -> Kept:
    return Kept(
        host=host,
        found=Found(uuids=("GPU-0", "GPU-1"), limit_w=(317.251, None), lock_mhz=1200),
        epoch=7,
        intent="obey",
        settled=True,
        command=lock(1275, T0),
        brake=brake(T0),
        holding=("in_band", "brake"),
        recent={"a", "b"},
        earlier={"c"},
        saved_at=T0,
    )


@pytest.mark.parametrize("command", [lock(1275, T0), limit(300.5, T0), brake(T0), None])
def test_what_was_saved_is_what_is_loaded(tmp_path: Path, command: object) -> None:
    file = StateFile(tmp_path / "deep" / "h01.json")
    kept = msgspec.structs.replace(full(), command=command)
    file.save(kept)
    assert file.load(HOST) == kept
    assert [path.name for path in file.path.parent.iterdir()] == ["h01.json"]


def test_of_the_last_commands_none_is_new_and_of_older_ones_few_are_kept() -> None:
    kept = Kept(host=HOST, found=Found())
    ids = [f"command {i}" for i in range(5 * RECENT + 3)]
    for i, command in enumerate(ids):
        assert kept.remember(command)
        assert not any(kept.remember(known) for known in ids[max(0, i + 1 - RECENT) : i + 1])
        assert len(kept.recent | kept.earlier) <= 2 * RECENT


def test_a_file_of_an_agent_that_kept_a_list_of_ids_is_understood(tmp_path: Path) -> None:
    ids = [f"{i:020x}" for i in range(RECENT)]
    file = StateFile(tmp_path / "h01.json")
    written = msgspec.to_builtins(full()) | {"recent": ids}
    del written["earlier"]
    file.path.write_bytes(msgspec.json.encode(written))
    kept = file.load(HOST)
    assert kept is not None
    assert kept.remember("new")
    assert not any(kept.remember(known) for known in ids)


def test_one_state_is_one_file_whatever_order_its_ids_came_in(tmp_path: Path) -> None:
    one, other = StateFile(tmp_path / "one.json"), StateFile(tmp_path / "other.json")
    up, down = full(), full()
    for i in range(40):
        up.remember(f"{i:020x}")
        down.remember(f"{39 - i:020x}")
    one.save(up)
    other.save(down)
    assert one.path.read_bytes() == other.path.read_bytes()


def test_a_host_that_was_never_kept_has_no_file(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "h01.json").load(HOST) is None


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "is damaged"),
        (b"\x00" * 4096, "is damaged"),
        (msgspec.json.encode(full())[:-20], "is damaged"),
        (b'{"host": "ams1/row-a/r01/h01", "found": 3}', "is damaged"),
        (msgspec.json.encode(full("ams1/row-a/r01/h02")), "is that of ams1/row-a/r01/h02, not of " + HOST),
        (
            msgspec.json.encode(msgspec.structs.replace(full(), version=VERSION + 1)),
            "is of version 2, and this agent knows version 1",
        ),
    ],
)
def test_what_cannot_be_understood_is_moved_aside_and_kept(tmp_path: Path, payload: bytes, why: str) -> None:
    file = StateFile(tmp_path / "h01.json")
    for number in (1, 2):
        file.path.write_bytes(payload)
        with pytest.raises(Unreadable, match=f"h01.json {why}.* it was kept as h01.json.unreadable-{number}"):
            file.load(HOST)
        assert (tmp_path / f"h01.json.unreadable-{number}").read_bytes() == payload
        assert file.load(HOST) is None


def test_a_file_left_half_written_is_not_read(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "h01.json")
    file.save(full())
    (tmp_path / ".h01.json.new").write_bytes(b'{"host": "ams1/')  # killed while writing
    assert file.load(HOST) == full()
    file.save(msgspec.structs.replace(full(), epoch=8))
    loaded = file.load(HOST)
    assert loaded is not None
    assert loaded.epoch == 8


def test_a_folder_in_its_place_is_an_alarm(tmp_path: Path) -> None:
    (tmp_path / "h01.json").mkdir()
    with pytest.raises(Unreadable, match="cannot be read: Is a directory"):
        StateFile(tmp_path / "h01.json").load(HOST)
