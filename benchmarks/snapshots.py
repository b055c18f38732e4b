"""What keeping a row's state costs, and what taking a row over does: snapshots with the log between them,
beside an entry of the whole state for each beat, as a stream engine's changelog would hold it."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from benchmarks.figure import Figure
from benchmarks.plant import START, setup_for
from runtime.hosts.row_log import INPUTS, TICKS, RowLog
from runtime.hosts.snapshot import Mark, freeze, thaw
from runtime.row_loop import Beat, RowLoop
from runtime.wiring import Unkept, on_twin, plant_of
from schemas import codec
from schemas.envelope import Event
from schemas.instants import HOUR, MINUTE, SECOND
from schemas.topics import topic_of

_ROUNDS = 20
_EVERY_MS = MINUTE


def measure() -> list[Figure]:
    """A busy 40-server row on the twin for an hour, its last minute done again from a snapshot."""
    setup = setup_for(40)
    plant = plant_of(setup, seed=1, start=START)
    tail: list[Beat] = []
    rig = on_twin(plant, setup, ledger=Unkept(), frame_ms=SECOND, observe=[tail.append])
    while rig.host.clock.now() < START + HOUR - _EVERY_MS:
        tail.clear()
        rig.host.run(until=rig.host.clock.now() + MINUTE)
    row = setup.site.rows[0]
    loop, state = rig.host.loop.loops[row.path], rig.host.loop.states[row.path]
    pending, state.pending = state.pending, []
    payload = freeze(state, loop, Mark(at=tail[-1].tick.at))
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        freeze(state, loop, Mark())
    freeze_ms = (time.perf_counter() - began) / _ROUNDS * 1e3
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        thaw(payload, loop)
    thaw_ms = (time.perf_counter() - began) / _ROUNDS * 1e3

    state.pending = pending
    tail.clear()
    rig.host.run(until=START + HOUR)
    redo_ms, tick_bytes = _redo(RowLoop(row, setup.policy, epoch=1), payload, tail)

    beats = HOUR // setup.policy.period_ms
    log_mb = (len(payload) * HOUR // _EVERY_MS + tick_bytes * beats) / 1e6
    entries_mb = len(payload) * beats / 1e6
    share = freeze_ms / setup.policy.period_ms
    return [
        Figure(
            "snapshot of a 40-server row after an hour", f"{len(payload) / 1e3:.0f} kB", value=len(payload)
        ),
        Figure("  made in", f"{freeze_ms:.1f} ms", "≤ 50 ms", f"read in {thaw_ms:.1f} ms", freeze_ms),
        Figure(
            "state written for a row in an hour",
            f"{log_mb:.0f} MB",
            "",
            f"an entry per beat: {entries_mb:.0f} MB, and {share:.1%} of a core",
            log_mb,
        ),
        Figure(
            "a minute of a 40-server row done again",
            f"{redo_ms / 1e3:.2f} s",
            "≤ 2 s",
            f"{len(tail)} beats, {tick_bytes:.0f} bytes a tick",
            redo_ms,
        ),
    ]


def _redo(loop: RowLoop, payload: bytes, beats: list[Beat]) -> tuple[float, float]:
    """Milliseconds to take a row over from a snapshot and the log since, decoding included; bytes a tick."""
    log = RowLog(loop, worker="bench")
    log.restore(payload)
    offsets: Counter[str] = Counter(dict.fromkeys((*INPUTS, TICKS), 0))
    lines: list[tuple[str, int, bytes]] = []

    def put(event: Event) -> int:
        topic = topic_of(event).name
        offsets[topic] += 1
        lines.append((topic, offsets[topic] - 1, codec.encode(event)))
        return len(lines[-1][2])

    size = 0
    for beat in beats:
        for event in beat.inputs:
            put(event)
        upto = {topic: 10_000_000 + offsets[topic] for topic in INPUTS}  # as long as real ones are
        size += len(codec.encode(msgspec.structs.replace(beat.tick, id="", epoch=1, upto=upto)))
        upto = {topic: offsets[topic] for topic in INPUTS}
        put(msgspec.structs.replace(beat.tick, id="", epoch=1, upto=upto))
    began = time.perf_counter()
    done = [beat for topic, at, line in lines for beat in log.take(topic, at, codec.decode(line))]
    took_ms = (time.perf_counter() - began) * 1e3
    assert [beat.decision for beat in done] == [beat.decision for beat in beats]
    return took_ms, size / len(beats)
