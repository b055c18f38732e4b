"""A row's power at each tick, from what its GPUs, servers and meters say, and how much of it is known.

Between ticks events are only taken in or turned away; all sums are made at the tick, on arrays of
hosts by GPUs. So the cost of a message is small and where a stream is cut cannot matter.

- A GPU's power is the mean of its plausible samples since the last tick, over at most `mean_ms`
  (the 2 s that a row reading spans): the instantaneous field where the source has it, else the
  averaged one, never a mean over both; of fewer than FEW_SAMPLES of both, the averaged one. How many
  frames they came in does not matter. It holds until it is stale. A mean over earlier ticks would not
  bring the sum of hosts nearer to the truth: what it takes off the noise it adds by being late.
- A host has one source of frames, the first that speaks; another's are withheld until that one is
  stale. Boards beyond those that a host is said to have are missing boards.
- A host is its wall power where that is trusted, else the sum of its GPUs and a modelled rest
  (`Host.wall_w`). A wall reading below the host's own GPUs is withheld. Missing boards count as the
  mean of the host's others.
- A host of which nothing is known is estimated at the share of nameplate that its kind (SKU and
  priority) draws now, else that the row draws. Estimates enter `power_w`, never `upper_w`: there a
  missing board counts at its highest limit, the modelled rest at its maximum, a missing host at its
  nameplate.
- The row is the sum of its meters where all are trusted, else of its hosts. Meters that sum to less
  than what is measured inside the row are withheld, and so are those that stay well below the sum
  of hosts (`meter_doubt_ratio`), until they have agreed with it again for as long. With too few
  hosts known and no meters, the row is unknown: no number stands in.
- Every tick is answered, in the order of arrival. After the ticks' clock was set back, what was read
  at a time yet to come is unknown until it is read again.

Verdicts ``lost``, ``impossible``, ``stuck``, ``stale`` and ``contradicted`` count devices (boards,
wall readings, meters) at this tick, ``silent`` hosts that were never heard of, ``unplaced`` boards
beyond those a host is said to have, ``opened`` meters behind an open breaker; ``rival`` (of a second
source), ``repeated``, ``late``, ``future`` and ``set_back`` count messages and clocks since the last
tick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.envelope import Event, Tick
from schemas.instants import Instant, Span
from schemas.samples import FeedSample, GpuFrame, PowerRollup, RackSample
from schemas.topology import Row
from schemas.units import FloatArray, Grid, Reading
from streams.quality import (
    FEW_SAMPLES,
    LEAST_W,
    NEVER,
    BoolArray,
    IntArray,
    Pick,
    QualityRules,
    Repeats,
    SourceClocks,
    Stillness,
    plausible,
)

CAUSES_AT_MOST = 64
"""Ids that a rollup names as its cause; a larger row names those of its first hosts."""

_HOTTEST_C = 150.0  # no GPU reads above it: the shutdown limits are near 100 °C (our choice)


class RollupState:
    """What is remembered between ticks: clocks, messages not yet summed, and arrays of readings.

    Arrays are (hosts, GPUs) or (hosts,), in site-file order, and lists by host or by meter; a host with
    fewer GPUs than the widest one has columns that stay NaN.
    """

    __slots__ = (
        "board_clocks",
        "board_still",
        "boards",
        "core_c",
        "counts",
        "extras",
        "frame_at",
        "frame_ids",
        "frames",
        "gpu_at",
        "gpu_w",
        "meter_at",
        "meter_clocks",
        "meter_denied",
        "meter_doubts",
        "meter_ids",
        "meter_still",
        "meter_w",
        "meters",
        "sources",
        "tick_at",
        "wall_at",
        "wall_clocks",
        "wall_ids",
        "wall_still",
        "wall_w",
        "walls",
    )

    def __init__(self, hosts: int, gpus: int, meters: int, boards: list[tuple[str, ...]]) -> None:
        self.tick_at: Instant = NEVER
        self.counts: dict[str, int] = {}
        self.boards = boards
        self.board_clocks = SourceClocks(hosts)
        self.frames: dict[int, list[GpuFrame]] = {}
        self.frame_ids = [""] * hosts
        self.sources = [""] * hosts
        self.extras = [0] * hosts  # boards that a host has beyond those it is said to have
        self.gpu_w: FloatArray = np.full((hosts, gpus), np.nan)
        self.gpu_at: IntArray = np.full((hosts, gpus), NEVER, np.int64)
        self.board_still = Stillness((hosts, gpus), 3)
        self.core_c: FloatArray = np.full((hosts, gpus), np.nan)
        self.frame_at: IntArray = np.full(hosts, NEVER, np.int64)
        self.wall_clocks = SourceClocks(hosts)
        self.walls: dict[int, tuple[Reading, str]] = {}
        self.wall_ids = [""] * hosts
        self.wall_w: FloatArray = np.full(hosts, np.nan)
        self.wall_at: IntArray = np.full(hosts, NEVER, np.int64)
        self.wall_still = Stillness((hosts,), 1)
        self.meter_clocks = SourceClocks(meters)
        self.meters: dict[int, FeedSample] = {}
        self.meter_ids = [""] * meters
        self.meter_w = [math.nan] * meters
        self.meter_at: list[Instant] = [NEVER] * meters
        self.meter_still = [Repeats() for _ in range(meters)]
        self.meter_denied = False  # whether the meters are withheld for what the hosts sum to,
        self.meter_doubts = 0  # and ticks in a row that say the contrary

    def count(self, verdict: str, n: int = 1) -> None:
        """Add to a verdict's count; nothing is said of verdicts that nothing met."""
        if n:
            self.counts[verdict] = self.counts.get(verdict, 0) + n


class _Hosts(NamedTuple):
    """A tick's hosts: what they draw together, at least and at most, and how much of it is known. `by_wall`
    and `boards` say of each which reading counts, `whole` how many are read throughout."""

    coverage: float
    covered: bool
    summed_w: Reading
    estimated_w: float
    floor_w: float
    most_w: float
    known_at: Instant | None
    by_wall: BoolArray
    boards: IntArray
    whole: int
    rack_w: tuple[Reading, ...]
    hottest_c: Reading


class Rollup:
    """GpuFrame, RackSample, FeedSample and Tick in, one PowerRollup per Tick out; others pass unread."""

    def __init__(self, row: Row, rules: QualityRules | None = None) -> None:
        self._row = row
        self._rules = rules or QualityRules()
        hosts = row.hosts
        self._hosts = {host.path: i for i, host in enumerate(hosts)}
        self._meters = {path: i for i, path in enumerate(row.meters)}
        self._racks = tuple(rack.path for rack in row.racks)
        sizes = [len(rack.hosts) for rack in row.racks]
        self._rack_of = np.repeat(np.arange(len(sizes)), sizes)
        self._rack_sizes = np.array(sizes)
        self._boards = [host.uuids or ("",) * host.gpu_count for host in hosts]
        self._gpu_counts = [host.gpu_count for host in hosts]
        self._gpus = np.array(self._gpu_counts)
        self._width = int(self._gpus.max(initial=0))
        self._exists: BoolArray = np.arange(self._width) < self._gpus[:, None]
        self._rated_w = np.array([host.rated_w for host in hosts])
        self._tdp_w = np.array([host.sku.tdp_w for host in hosts])
        self._limit_w = np.array([max(host.sku.tdp_w, host.sku.limit_max_w) for host in hosts])
        self._idle_w = np.array([host.sku.idle_w for host in hosts])
        self._all_idle_w = self._gpus * self._idle_w
        self._all_swing_w = self._gpus * (self._tdp_w - self._idle_w)
        self._rest_idle_w = np.array([host.overhead_idle_w for host in hosts])
        self._rest_max_w = np.array([host.overhead_max_w for host in hosts])
        kinds = {kind: i for i, kind in enumerate(dict.fromkeys((h.sku.name, h.priority) for h in hosts))}
        self._kind = np.array([kinds[host.sku.name, host.priority] for host in hosts], np.int64)
        self._kinds = len(kinds)
        rules = self._rules
        shape = (len(hosts), self._width)
        self._silence: _Hosts | None = None
        self._board_moves = np.empty((3, *shape))
        self._board_moves[0] = rules.util_move_ratio
        self._board_moves[1] = rules.clock_move_mhz
        self._board_moves[2] = rules.power_move_ratio * self._tdp_w[:, None]

    def key(self, event: Event) -> str:
        """The row: all that one row says meets in one place."""
        return self._row.path

    def initial(self) -> RollupState:
        """Nothing heard yet."""
        return RollupState(len(self._hosts), self._width, len(self._meters), list(self._boards))

    def step(self, state: RollupState, events: Sequence[Event]) -> tuple[RollupState, list[PowerRollup]]:
        """Take the events in; a rollup for each tick of this row among them."""
        out: list[PowerRollup] = []
        mean_ms = self._rules.mean_ms
        for event in events:
            kind = type(event)
            if kind is GpuFrame:
                host = self._hosts.get(event.subject)
                if host is None:
                    continue
                if event.source != state.sources[host] and not self._takes_over(state, host, event.source):
                    state.count("rival")
                    continue
                if verdict := state.board_clocks.accept(host, event.at):
                    state.count(verdict)
                    continue
                state.extras[host] = 0
                if event.gpus != state.boards[host] or any(event.faults):  # type: ignore[attr-defined]
                    event = self._align(state, host, event)  # type: ignore[arg-type]
                if event.offsets_ms and event.offsets_ms[0] <= -mean_ms:  # type: ignore[attr-defined]
                    event = _latest(event, mean_ms)  # type: ignore[arg-type]
                frames = state.frames.get(host)
                if frames is None:
                    state.frames[host] = [event]  # type: ignore[list-item]  # `kind` told, not isinstance: speed
                else:
                    if _fields(frames[0]) != _fields(event):  # type: ignore[arg-type]
                        frames.clear()  # it offers other power fields: never a mean over both
                    while frames and frames[0].at <= event.at - mean_ms:
                        del frames[0]
                    frames.append(event)  # type: ignore[arg-type]
            elif type(event) is Tick:
                if event.subject == self._row.path:
                    out.append(self._roll(state, event.at))
            elif type(event) is RackSample:
                self._take_walls(state, event)
            elif type(event) is FeedSample:
                meter = self._meters.get(event.subject)
                if meter is not None:
                    if verdict := state.meter_clocks.accept(meter, event.at):
                        state.count(verdict)
                    else:
                        state.meters[meter] = event
        return state, out

    def _takes_over(self, state: RollupState, host: int, source: str) -> bool:
        """Whether a source becomes its host's, as the first one or after a stale one."""
        heard = host in state.frames or state.frame_at[host] >= state.tick_at - self._rules.gpu_stale_ms
        if heard and state.sources[host]:
            return False
        if state.sources[host]:
            state.board_clocks.forget(host)
        state.sources[host] = source
        return True

    def _take_walls(self, state: RollupState, sample: RackSample) -> None:
        whole = len(sample.power_w) == len(sample.hosts)
        for i, path in enumerate(sample.hosts):
            host = self._hosts.get(path)
            if host is None:
                continue
            if verdict := state.wall_clocks.accept(host, sample.at):
                state.count(verdict)
                continue
            fault = sample.faults[i] if i < len(sample.faults) else ""
            state.walls[host] = (sample.power_w[i] if whole and not fault else None, sample.id)

    # -- taking in, at the tick -------------------------------------------------------------------

    def _fold_frames(self, state: RollupState, now: Instant) -> None:
        if not state.frames:
            return
        rules = self._rules
        heard = sorted(state.frames.items())
        pick = self._pick([host for host, _ in heard])
        read_at: list[Instant] = []
        for host, frames in heard:
            state.frame_ids[host] = frames[-1].id
            when, ahead = state.board_clocks.read_at(host, now, rules)
            read_at.append(when)
            if ahead:
                state.count("future", len(frames))
        at = np.array(read_at)[:, None]
        power_w, starts = self._gather(heard, _best_power_w)
        ceiling_w = (rules.ceiling_ratio * self._tdp_w)[pick].repeat(_sizes(starts, len(power_w)))[:, None]
        good = plausible(power_w, ceiling_w)
        samples = np.add.reduceat(good, starts, axis=0, dtype=np.int64)
        if not good.all():
            exists = self._exists[pick]
            absent = np.isnan(power_w)
            impossible = np.logical_or.reduceat(~good & ~absent, starts, axis=0)
            state.count("impossible", int((impossible & exists).sum()))
            state.count("lost", int((np.logical_and.reduceat(absent, starts, axis=0) & exists).sum()))
            power_w = np.where(good, power_w, np.nan)
        total_w = np.add.reduceat(np.where(good, power_w, 0.0), starts, axis=0)
        state.gpu_w[pick] = np.where(samples, total_w / np.maximum(samples, 1), state.gpu_w[pick])
        state.gpu_at[pick] = np.where(samples, at, state.gpu_at[pick])

        low_w, high_w = np.fmin.reduceat(power_w, starts, axis=0), np.fmax.reduceat(power_w, starts, axis=0)
        going = state.board_still.extend(pick, at, samples, low_w, high_w)
        if going.any():
            self._call_witnesses(state, heard, pick, going)

        core_c, _ = self._gather(heard, _core_c)
        state.core_c[pick] = np.where(plausible(core_c, _HOTTEST_C), core_c, np.nan)
        state.frame_at[pick] = at[:, 0]
        state.frames = {}

    def _call_witnesses(
        self, state: RollupState, heard: list[tuple[int, list[GpuFrame]]], pick: Pick, going: BoolArray
    ) -> None:
        """What should have moved a board's power: its utilisation, its clock, and, for a board at
        work, the power of the boards beside it."""
        low, high = np.empty((2, 3, *going.shape))
        for i, field in enumerate((_utilisation_ratio, _sm_mhz)):
            seen, starts = self._gather(heard, field)
            seen[np.isinf(seen)] = np.nan
            low[i] = np.fmin.reduceat(seen, starts, axis=0)
            high[i] = np.fmax.reduceat(seen, starts, axis=0)
        gpu_w = state.gpu_w[pick]
        beside_w = np.nansum(gpu_w, axis=1, keepdims=True) - gpu_w
        beside_w /= np.maximum(self._gpus[pick] - 1, 1)[:, None]
        at_work = gpu_w > self._rules.loaded_ratio * self._idle_w[pick, None]
        low[2] = high[2] = np.where(at_work, beside_w, np.nan)
        state.board_still.testify(pick, going, low, high)

    def _pick(self, hosts: list[int]) -> Pick:
        """These hosts of an array; a slice, which numpy takes faster, when they are all."""
        return slice(None) if len(hosts) == len(self._hosts) else np.array(hosts)

    def _gather(
        self,
        heard: list[tuple[int, list[GpuFrame]]],
        field: Callable[[list[GpuFrame]], Grid],
    ) -> tuple[FloatArray, IntArray]:
        """One grid of every host's frames, stacked: (samples, GPUs), hosts one after the other, and where
        each host starts. A host without samples has one row of NaN."""
        width, gpus = self._width, self._gpu_counts
        blank = (None,) * width
        flat: list[Reading] = []
        starts: list[int] = []
        for host, frames in heard:
            starts.append(start := len(flat))
            n = gpus[host]
            for row in field(frames):
                if len(row) == width == n:
                    flat += row
                else:
                    flat += row + blank[n:] if len(row) == n else blank
            if len(flat) == start:
                flat += blank
        return np.array(flat, np.float64).reshape(-1, width), np.array(starts) // width

    def _align(self, state: RollupState, host: int, frame: GpuFrame) -> GpuFrame:
        """The frame in the state's order of boards, unknown where a board is absent or has a fault.

        A board not met before takes the place of one that the frame does not name; one more than
        the host is said to have is counted and left out.
        """
        boards = list(state.boards[host])
        free = [column for column, board in enumerate(boards) if board not in frame.gpus]
        columns: list[int | None] = [None] * len(boards)  # of the frame, by column of the state
        for i, board in enumerate(frame.gpus):
            if board not in boards:
                if not free:
                    state.count("unplaced")
                    state.extras[host] += 1
                    continue
                boards[free.pop(0)] = board
            if not (i < len(frame.faults) and frame.faults[i]):
                columns[boards.index(board)] = i
        state.boards[host] = tuple(boards)

        def aligned(row: tuple[Reading, ...]) -> tuple[Reading, ...]:
            if len(row) != len(frame.gpus):
                return (None,) * len(columns)
            return tuple(None if i is None else row[i] for i in columns)

        return msgspec.structs.replace(
            frame,
            gpus=tuple(boards),
            power_w=tuple(map(aligned, frame.power_w)),
            power_average_w=tuple(map(aligned, frame.power_average_w)),
            sm_mhz=tuple(map(aligned, frame.sm_mhz)),
            utilisation_ratio=tuple(map(aligned, frame.utilisation_ratio)),
            core_c=aligned(frame.core_c),
        )

    def _fold_walls(self, state: RollupState, now: Instant) -> None:
        if not state.walls:
            return
        hosts = list(state.walls)
        watts = np.array([state.walls[host][0] for host in hosts], np.float64)
        good = plausible(watts, self._rules.ceiling_ratio * self._rated_w[hosts])
        state.count("lost", int(np.isnan(watts).sum()))
        state.count("impossible", int((~good & ~np.isnan(watts)).sum()))
        for i, host in enumerate(hosts):
            at, ahead = state.wall_clocks.read_at(host, now, self._rules)
            if ahead:
                state.count("future")
            if good[i]:
                state.wall_w[host], state.wall_at[host] = watts[i], at
                state.wall_ids[host] = state.walls[host][1]
        pick = np.array(hosts)
        read_w = np.where(good, watts, np.nan)
        going = state.wall_still.extend(pick, state.wall_at[pick], good.astype(np.int64), read_w, read_w)
        # A host with a board never read has no sum, so no witness.
        gpus_w: FloatArray = state.gpu_w.sum(axis=1, where=self._exists)[pick]
        state.wall_still.testify(pick, going, gpus_w, gpus_w)
        state.walls = {}

    def _fold_meters(self, state: RollupState, now: Instant, hosts_w: Reading) -> None:
        for meter, sample in state.meters.items():
            at, ahead = state.meter_clocks.read_at(meter, now, self._rules)
            if ahead:
                state.count("future")
            watts = sample.power_w
            opened = watts == 0.0 and sample.breaker_closed is False  # the one honest zero
            if sample.breaker_closed is False:
                state.count("opened")
            if watts is None:
                state.count("lost")
                continue
            if not (opened or LEAST_W <= watts <= self._rules.ceiling_ratio * self._row.rated_w):
                state.count("impossible")
                continue
            state.meter_w[meter], state.meter_at[meter], state.meter_ids[meter] = float(watts), at, sample.id
            state.meter_still[meter].extend(at, float(watts), hosts_w)
        state.meters = {}

    # -- summing ----------------------------------------------------------------------------------

    def _roll(self, state: RollupState, now: Instant) -> PowerRollup:
        rules, row = self._rules, self._row
        set_back = now < state.tick_at
        if set_back:
            self._rewind(state, now)
        self._fold_frames(state, now)
        self._fold_walls(state, now)
        state.count("set_back", state.board_clocks.settle(now, rules) + state.wall_clocks.settle(now, rules)
                    + state.meter_clocks.settle(now, rules))  # fmt: skip

        hosts = self._silent_hosts(state) or self._sum_hosts(state, now)
        coverage, summed_w = hosts.coverage, hosts.summed_w

        # The row: its meters where they can be believed, else its hosts.
        self._fold_meters(state, now, summed_w)
        metered_w = self._metered_w(state, now, hosts.floor_w, summed_w)
        if set_back:  # only now: what came since the last tick is news by the clock it was taken in by
            for clocks in (state.board_clocks, state.wall_clocks, state.meter_clocks):
                clocks.rewind(now, rules)
        state.tick_at = now
        power_w: Reading
        known_at: Instant | None
        if metered_w is not None:
            basis, power_w, upper_w = "meter", metered_w, max(metered_w, hosts.floor_w, summed_w or 0.0)
            coverage, known_at = 1.0, min(state.meter_at)
            cause = tuple(state.meter_ids)
        else:
            basis, power_w, upper_w = ("sum" if hosts.covered else "unknown"), summed_w, hosts.most_w
            known_at = hosts.known_at
            cause = self._sum_cause(state, hosts.by_wall, hosts.boards)

        verdicts, state.counts = state.counts, {}
        return PowerRollup(
            at=now,
            source=f"streams/rollup/{row.path}",
            subject=row.path,
            cause=cause[:CAUSES_AT_MOST],
            power_w=_milliwatts(power_w),
            upper_w=round(upper_w, 3),
            budget_w=row.budget_w,
            coverage_ratio=round(coverage, 6),
            known_at=known_at,
            basis=basis,
            metered_w=_milliwatts(metered_w),
            summed_w=_milliwatts(summed_w),
            estimated_w=hosts.estimated_w,
            racks=self._racks,
            rack_w=hosts.rack_w,
            verdicts=verdicts,
            hottest_c=hosts.hottest_c,
            hosts_known=hosts.whole,
            hosts_total=len(self._hosts),
        )

    def _sum_hosts(self, state: RollupState, now: Instant) -> _Hosts:
        """What the hosts draw at this tick, by what they say themselves."""
        rules = self._rules
        trusted = self._believed(
            state, state.gpu_at, state.board_still, now - rules.gpu_stale_ms, self._board_moves
        )
        boards = trusted.sum(axis=1)
        gpus_w = np.where(trusted, state.gpu_w, 0.0).sum(axis=1)
        by_wall = self._believed_walls(state, now, gpus_w)

        # Hosts: what they draw, and what they can draw at most.
        extras = np.array(state.extras)
        gpus = self._gpus + extras
        share = np.where(by_wall, 1.0, boards / gpus)
        coverage = float((share * self._rated_w).sum() / self._rated_w.sum())
        known = share > 0.0
        filled_w = gpus_w * gpus / np.maximum(boards, 1)
        host_w = np.where(by_wall, state.wall_w, self._wall_w(filled_w))
        estimated_w = np.where(by_wall, 0.0, filled_w - gpus_w)
        if not known.all():
            host_w = np.where(known, host_w, self._alike_w(host_w, known))
            estimated_w = np.where(known, estimated_w, host_w)
        most_w = gpus_w + (gpus - boards) * self._limit_w + self._rest_max_w
        rated_w = self._rated_w + extras * self._limit_w
        most_w = np.where(known, np.maximum(np.minimum(most_w, rated_w), host_w), rated_w)
        most_w = np.where(by_wall, state.wall_w, most_w)
        floor_w = float(np.where(by_wall, state.wall_w, gpus_w).sum())
        covered = coverage >= rules.coverage_ratio - 1e-9  # a sum of shares is not exact
        summed_w = float(host_w.sum()) if covered else None
        boards_at = np.where(trusted, state.gpu_at, now).min(axis=1, initial=now)
        hosts_at = np.where(by_wall, state.wall_at, boards_at)
        return _Hosts(
            coverage=coverage,
            covered=covered,
            summed_w=summed_w,
            estimated_w=round(float(estimated_w.sum()), 3) if covered else 0.0,
            floor_w=floor_w,
            most_w=float(most_w.sum()),
            known_at=int(hosts_at[known].min()) if covered else None,
            by_wall=by_wall,
            boards=boards,
            whole=int((share == 1.0).sum()),
            rack_w=self._rack_w(host_w, share),
            hottest_c=self._hottest_c(state, now),
        )

    def _silent_hosts(self, state: RollupState) -> _Hosts | None:
        """The same where no host was ever heard of, as on a row that only its meters tell of; else None."""
        if any(state.frame_ids) or any(state.wall_ids) or any(state.extras):
            return None
        if self._silence is None:
            self._silence = self._sum_hosts(self.initial(), 0)
        state.count("silent", len(self._hosts))
        return self._silence

    def _rewind(self, state: RollupState, now: Instant) -> None:
        """The ticks' clock was set back: readings of a time yet to come are of no known age."""
        ahead = now + self._rules.future_ms
        for at in (state.gpu_at, state.wall_at, state.frame_at):
            at[at > ahead] = NEVER
            np.minimum(at, now, out=at)
        state.meter_at = [NEVER if at > ahead else min(at, now) for at in state.meter_at]
        stills: list[Stillness | Repeats] = [state.board_still, state.wall_still, *state.meter_still]
        for still in stills:
            still.rewind(now - state.tick_at)

    def _believed(
        self, state: RollupState, at: IntArray, still: Stillness, oldest: Instant, moves: FloatArray | float
    ) -> BoolArray:
        """The devices whose reading, taken `at`, is neither older than `oldest` nor stuck."""
        fresh: BoolArray = at >= oldest
        stuck = fresh & still.stuck(at, moves, self._rules)
        state.count("stale", int(np.count_nonzero((at != NEVER) & ~fresh)))
        state.count("stuck", int(np.count_nonzero(stuck)))
        return fresh & ~stuck

    def _believed_walls(self, state: RollupState, now: Instant, gpus_w: FloatArray) -> BoolArray:
        """The hosts whose wall reading is believed: not one below what their own GPUs draw."""
        rules = self._rules
        silent = (state.wall_at == NEVER) & (state.frame_at == NEVER)
        state.count("silent", int(silent.sum()))
        moves = rules.power_move_ratio * self._rated_w
        believed = self._believed(state, state.wall_at, state.wall_still, now - rules.wall_stale_ms, moves)
        denied = believed & (state.wall_w < rules.contradiction_ratio * gpus_w)
        state.count("contradicted", int(denied.sum()))
        return believed & ~denied

    def _wall_w(self, gpus_w: FloatArray) -> FloatArray:
        """`Host.wall_w` for all hosts at once."""
        load = np.minimum(np.maximum((gpus_w - self._all_idle_w) / self._all_swing_w, 0.0), 1.0)
        modelled: FloatArray = gpus_w + self._rest_idle_w + load * (self._rest_max_w - self._rest_idle_w)
        return modelled

    def _alike_w(self, host_w: FloatArray, known: BoolArray) -> FloatArray:
        """Each host at the share of nameplate that the known hosts of its kind draw, else that all do."""
        if not known.any():
            return np.full(host_w.shape, np.nan)
        drawn = np.bincount(self._kind, np.where(known, host_w, 0.0), self._kinds)
        rated = np.bincount(self._kind, np.where(known, self._rated_w, 0.0), self._kinds)
        ratio = np.where(rated > 0.0, drawn / np.maximum(rated, 1.0), drawn.sum() / rated.sum())
        alike: FloatArray = self._rated_w * ratio[self._kind]
        return alike

    def _metered_w(self, state: RollupState, now: Instant, floor_w: float, summed_w: Reading) -> Reading:
        """The sum of the row's meters, unknown unless each is trusted and their sum is possible."""
        rules = self._rules
        if not self._meters:
            return None
        move = rules.power_move_ratio * self._row.rated_w
        oldest = now - rules.meter_stale_ms
        believed = True
        for at, still in zip(state.meter_at, state.meter_still, strict=True):
            if at < oldest:
                believed = False
                state.count("stale", int(at != NEVER))
            elif still.stuck(at, move, rules):
                believed = False
                state.count("stuck")
        if not believed:
            return None
        metered_w = sum(state.meter_w)
        if summed_w is not None:  # without a sum to compare with, what was last said of the meters stands
            low = metered_w < rules.meter_doubt_ratio * summed_w
            state.meter_doubts = state.meter_doubts + 1 if low != state.meter_denied else 0
            if state.meter_doubts >= rules.meter_doubt_ticks:
                state.meter_denied, state.meter_doubts = low, 0
        if state.meter_denied or metered_w < rules.contradiction_ratio * floor_w or metered_w < LEAST_W:
            state.count("contradicted", len(self._meters))
            return None
        return metered_w

    def _sum_cause(self, state: RollupState, by_wall: BoolArray, boards: IntArray) -> tuple[str, ...]:
        """The newest message of each host that the sum rests on, each once."""
        rests_on = zip(by_wall.tolist(), boards.tolist(), state.wall_ids, state.frame_ids, strict=True)
        return tuple(
            dict.fromkeys(
                wall_id if wall else frame_id for wall, n, wall_id, frame_id in rests_on if wall or n
            )
        )

    def _rack_w(self, host_w: FloatArray, share: FloatArray) -> tuple[Reading, ...]:
        whole = np.bincount(self._rack_of, share == 1.0, len(self._racks)) == self._rack_sizes
        rack_w = np.bincount(self._rack_of, np.where(share == 1.0, host_w, 0.0), len(self._racks))
        racks = zip(rack_w.tolist(), whole.tolist(), strict=True)
        return tuple(round(watts, 3) if known else None for watts, known in racks)

    def _hottest_c(self, state: RollupState, now: Instant) -> Reading:
        fresh = (state.frame_at >= now - self._rules.gpu_stale_ms)[:, None] & ~np.isnan(state.core_c)
        return float(state.core_c[fresh].max()) if fresh.any() else None


def _utilisation_ratio(frames: list[GpuFrame]) -> Grid:
    return tuple(row for frame in frames for row in frame.utilisation_ratio)


def _sm_mhz(frames: list[GpuFrame]) -> Grid:
    return tuple(row for frame in frames for row in frame.sm_mhz)


def _fields(frame: GpuFrame) -> tuple[bool, bool]:
    """Which power fields a frame offers."""
    return bool(frame.power_w), bool(frame.power_average_w)


def _latest(frame: GpuFrame, span: Span) -> GpuFrame:
    """The frame without the samples taken `span` or longer before it."""
    count = len(frame.offsets_ms)
    old = sum(offset <= -span for offset in frame.offsets_ms)

    def cut(grid: Grid) -> Grid:
        return grid[old:] if len(grid) == count else grid

    return msgspec.structs.replace(
        frame,
        offsets_ms=frame.offsets_ms[old:],
        power_w=cut(frame.power_w),
        power_average_w=cut(frame.power_average_w),
        sm_mhz=cut(frame.sm_mhz),
        utilisation_ratio=cut(frame.utilisation_ratio),
    )


def _averaged(frames: list[GpuFrame]) -> bool:
    """Whether the averaged power is used: of few instants it says more, if it says all they do."""
    first, last = frames[0], frames[-1]
    if not first.power_w:
        return True
    if not first.power_average_w or sum(len(frame.power_w) for frame in frames) >= FEW_SAMPLES:
        return False
    pairs = zip(last.power_average_w[-1], last.power_w[-1], strict=False)
    return not any(average is None and instant is not None for average, instant in pairs)


def _best_power_w(frames: list[GpuFrame]) -> Grid:
    if _averaged(frames):
        return tuple(row for frame in frames for row in frame.power_average_w)
    return tuple(row for frame in frames for row in frame.power_w)


def _core_c(frames: list[GpuFrame]) -> Grid:
    return (frames[-1].core_c,)


def _sizes(starts: IntArray, end: int) -> IntArray:
    """How many rows each host has."""
    sizes = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=sizes[:-1])
    sizes[-1] = end - starts[-1]
    return sizes


def _milliwatts(watts: Reading) -> Reading:
    return None if watts is None else round(watts, 3)
