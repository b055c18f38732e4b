"""What was said and not yet taken keeps its order on disk, survives whoever wrote it, and is counted when
it cannot be kept."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.counterparts import PROJECT

from runtime.bus.spool import Damaged, Record, Spool


def records(*numbers: int, size: int = 20) -> list[Record]:
    return [Record(1_000 + n, b"row", str(n).encode().ljust(size)) for n in numbers]


FRAME = 39  # bytes on disk of each of them


def kept(spool: Spool) -> list[int]:
    return [int(spool.read(number).value) for number in range(spool.first, spool.end)]


def segments(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.spool"))


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> Spool:
    """With segments of five records or so."""
    return Spool(tmp_path, segment_bytes=200)


def test_records_come_back_in_their_order_from_the_next_process(spool: Spool, tmp_path: pathlib.Path) -> None:
    assert spool.append(0, records(*range(12))) == 12
    assert spool.append(12, records(12)) == 1
    spool.close()
    again = Spool(tmp_path)
    assert (again.first, again.end, kept(again)) == (0, 13, list(range(13)))
    assert not again.found
    again.close()


def test_the_oldest_goes_first_and_gives_room(spool: Spool, tmp_path: pathlib.Path) -> None:
    spool.append(0, records(*range(12)))
    before = spool.bytes
    assert spool.drop_oldest() == spool.first
    assert spool.bytes < before
    assert kept(spool) == list(range(spool.first, 12))
    spool.forget(12)
    assert not spool
    assert not segments(tmp_path)
    spool.append(12, records(12))
    assert (spool.first, kept(spool)) == (12, [12])
    spool.close()


def test_two_processes_never_share_a_spool(spool: Spool, tmp_path: pathlib.Path) -> None:
    with pytest.raises(BlockingIOError):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


@pytest.mark.parametrize(("left", "of_it"), [(36, b""), (0, b"\0" * 4096)], ids=["a kill", "a power cut"])
def test_what_a_writer_had_begun_is_cut_off_and_counted(
    spool: Spool, tmp_path: pathlib.Path, left: int, of_it: bytes
) -> None:
    spool.append(0, records(*range(12)))
    spool.close()
    last = segments(tmp_path)[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) - FRAME + left] + of_it)
    again = Spool(tmp_path)
    assert kept(again) == list(range(11))
    assert again.lost == 1
    assert again.found == [f"{last}: the last record was only begun"]
    assert again.append(11, records(11)) == 1
    again.close()
    third = Spool(tmp_path)
    assert kept(third) == list(range(12))
    third.close()


@given(data=st.data())
def test_damage_loses_one_segment_says_so_and_sends_nothing_false(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, segment_bytes=200)
    spool.append(0, records(*range(12)))
    spool.close()
    oldest, newest = segments(folder)
    hurt = data.draw(st.sampled_from([oldest, newest]))
    content = bytearray(hurt.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    hurt.write_bytes(content)
    again = Spool(folder)
    gaps = {number for gap in again.gaps for number in gap}
    left = {number: again.read(number) for number in range(again.first, again.end) if number not in gaps}
    again.close()
    assert all(int(record.value) == number for number, record in left.items())
    if hurt == newest and place % FRAME in range(4, 8):  # a length: how many there were cannot be told
        assert 1 <= again.lost <= 12
    else:
        assert again.lost == 12 - len(left)
    assert len(again.found) == 1
    assert str(hurt) in again.found[0]
    if "set aside" in again.found[0]:
        (aside,) = folder.glob("*.damaged-1")
        assert aside.read_bytes() == bytes(content)


def test_damage_met_while_reading_is_set_aside_and_the_rest_goes_on(
    spool: Spool, tmp_path: pathlib.Path
) -> None:
    spool.append(0, records(*range(12)))
    oldest, newest = segments(tmp_path)
    oldest.write_bytes(b"\0" * 50)
    with pytest.raises(Damaged, match=r"; it was set aside as .*damaged-1") as caught:
        spool.read(0)
    assert (caught.value.first, caught.value.end) == (0, int(newest.stem))
    assert kept(spool) == list(range(caught.value.end, 12))
    spool.close()


def test_a_disk_that_fails_in_a_write_and_will_not_have_it_cut_off_costs_nothing_that_was_whole(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append(0, records(0, 1))
    write = os.write

    def half(handle: int, content: memoryview) -> int:
        write(handle, content[:10])
        raise OSError(errno.EIO, "Input/output error")

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", half)
        broken.setattr(os, "truncate", read_only)
        assert spool.append(2, records(2)) == 0
    assert kept(spool) == [0, 1]
    assert spool.append(2, records(2)) == 1, "into a segment of its own"
    assert kept(spool) == [0, 1, 2]
    spool.close()


def test_a_full_disk_takes_what_it_can_whole_and_more_when_there_is_room(tmp_path: pathlib.Path) -> None:
    # A process of its own: the largest file it may write is what its disk has room for.
    script = f"""
        import pathlib, resource, signal
        from runtime.bus.spool import Record, Spool
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spool = Spool(pathlib.Path({str(tmp_path)!r}))
        records = [Record(1, b"row", b"%d" % n) for n in range(100)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
        assert spool.append(0, records[:10]) == 10
        assert spool.append(10, records[10:]) == 0
        assert spool.trouble.endswith(": File too large"), spool.trouble
        assert spool.end == 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        assert spool.append(10, records[10:]) == 90
        assert not spool.trouble
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT, check=True)
    again = Spool(tmp_path)
    assert kept(again) == list(range(100))
    assert not again.found
    again.close()
