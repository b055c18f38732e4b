"""A row of inference servers over weeks: the plant of `server`, worked out minutes at a time.

Between two changes of a clock a row's course is settled by its requests, so a stretch of many steps is worked
out at once, on arrays of (hosts, steps) and of requests, and handed on step by step. Whoever sets a clock
changes the future only: the stretch is then cut at that moment, what was handed on stays to the last bit,
and the rest is worked out anew. That costs some 10 µs a step for 52 servers instead of a millisecond.

What a server does is what `twin.server.Servers` does, with its figures:

- prompts are worked off first come first served. In a server's own *work time*, which runs as fast as its
  clock lets it work, a prompt is through at max(its arrival, the one before) + its work, and that is a
  running maximum over sums (Lindley's recursion). Each request has its exact moments, whatever the step;
- answers share the decode rate, which falls a little with their number and while a prompt runs. Their number
  depends on how fast they were: it is worked out twice, from the last stretch's number and from the first
  answer, after which nothing moves by more than some 1e-4;
- power is the mean of a step; fans and conversion follow the GPUs' load with their lag.

All GPUs of a server are alike and share its settings, a clock lock per path, the tightest of which holds.
Power limits are not modelled: a safe share's clock keeps a board within a few watts of its limit by itself.
A breaker that would open is counted and goes on: weeks in which the row stands dark say nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from schemas.commands import Path
from schemas.instants import SECOND, Instant, Span
from schemas.topology import Host, Priority
from schemas.units import FloatArray
from twin.breaker import TripCurve
from twin.server import DECODE_KEPT, FAN_LAG_S
from twin.serving.curves import curves_of
from twin.weekly import BLOCK_S, Load
from twin.workload import Arrivals, IntArray

STEP_MS: Span = 2 * SECOND
"""A step, and the mean that the row's meter shows."""

_DT = STEP_MS / SECOND
_BLOCK = BLOCK_S * SECOND // STEP_MS  # steps
_GLANCE = 32  # steps
_PATHS: tuple[Path, ...] = get_args(Path)
_PRIORITIES: tuple[Priority, ...] = get_args(Priority)
_BOARD_LATE_MS: Span = 50

# Latencies in bins 0.5 % wide from 10 ms to about 3 h, as `server` counts them.
_BIN, _FIRST_S, _BINS = 0.005, 0.01, 2800

OobLatency: TypeAlias = Literal["constant", "uniform"]


class PathFaults(msgspec.Struct, frozen=True, kw_only=True):
    """How late a write out of band lands, in seconds: always, or uniformly up to it; and how often it never
    does, without a word."""

    latency_s: float = 40.0
    spread: OobLatency = "constant"
    loss_ratio: float = 0.0


class Totals(msgspec.Struct, kw_only=True):
    """What a run has come to. Arrays are per priority (low, high); `latency_counts` has the bins of
    `quantile_s`. `over_budget_s` counts steps whose mean power was above the budget, `trips` how often the
    breaker would have opened, `capped_host_s` hosts x seconds below the highest clock."""

    seconds: float = 0.0
    energy_j: float = 0.0
    peak_w: float = 0.0
    over_budget_s: float = 0.0
    trips: int = 0
    capped_host_s: FloatArray
    arrived: IntArray
    done: IntArray
    tokens: FloatArray
    latency_counts: IntArray

    def quantile_s(self, priority: Priority, quantile: float) -> float:
        """A quantile of the time from arrival to last token of the requests done, within 0.25 %; NaN before
        the first."""
        counts = self.latency_counts[_PRIORITIES.index(priority)]
        if not counts.any():
            return float("nan")
        below = np.cumsum(counts)
        rank = quantile * below[-1]
        place = int(np.searchsorted(below, rank))
        inside = (rank - (below[place] - counts[place])) / max(1, counts[place])
        return float(_FIRST_S * np.exp((place + inside) * _BIN))


class _Waiting(NamedTuple):
    """Requests whose prompt is not through, in the order of host and arrival."""

    host: IntArray
    at_s: FloatArray
    prompt: FloatArray
    output: FloatArray
    work: FloatArray  # seconds at full clock that are left of it


class _Running(NamedTuple):
    """Answers under way; `target` is where their host's count of tokens ends them, from this moment on."""

    host: IntArray
    at_s: FloatArray
    output: FloatArray
    target: FloatArray


class _Prompts(NamedTuple):
    """A stretch's prompts. `prefilling` (the share of the step), `tokens` (in the prompts at hand) and
    `began` (how many answers) are (hosts, steps), `waiting` is left over; the rest has one entry for each
    prompt that was through: its host, the step, how long before that step's end (in steps), its request."""

    prefilling: FloatArray
    tokens: FloatArray
    began: IntArray
    waiting: _Waiting
    host: IntArray
    step: IntArray
    back: FloatArray
    at_s: FloatArray
    output: FloatArray


class _Answers(NamedTuple):
    """A stretch's answers: those under way before, then those that began. `over` says which ended, and
    `over_step` when; `rate` and `decoded` are tokens per answer in each step and up to its end, `batch` and
    `after` how many were under way at its beginning and its end."""

    host: IntArray
    target: FloatArray
    over: npt.NDArray[np.bool_]
    over_step: IntArray
    rate: FloatArray
    decoded: FloatArray
    batch: FloatArray
    after: FloatArray


class _State(NamedTuple):
    """The row at the beginning of a step."""

    waiting: _Waiting
    running: _Running
    overhead_w: FloatArray  # (hosts,)


class _Stretch(NamedTuple):
    """A course worked out from a state on: per step, and what it leaves behind. It holds up to step `until`
    while nobody sets a clock, though not all of it may be worked out."""

    first: int
    until: int
    power_w: list[float]
    busy: FloatArray  # (hosts, steps): share of the step with work
    end: _State
    arrived: IntArray  # (hosts,)
    done_host: IntArray
    done_latency_s: FloatArray
    done_output: FloatArray
    capped: FloatArray  # (hosts,) seconds below the highest clock


class _Write(NamedTuple):
    due: Instant
    number: int
    path: int
    host: int
    mhz: float


class BulkRow:
    """One row, `hosts` in its order, fed by `load`; time counts from 0 in steps of `STEP_MS`.

    `power_w(step)` is asked for each step once, in order, and says what a meter shows at its end. A write
    counts from the end of the last step asked for.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        budget_w: float,
        load: Load,
        *,
        seed: int,
        faults: PathFaults | None = None,
        power_ratio: float = 1.0,
        curve: TripCurve | None = None,
    ) -> None:
        """`power_ratio` multiplies the power of every GPU at work (the study's robustness run)."""
        self.hosts = tuple(hosts)
        self.budget_w = budget_w
        self.faults = faults or PathFaults()
        self.lost_writes = 0
        self._load, self._power_ratio = load, power_ratio
        self._curve = curve or TripCurve()
        self._rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[1])
        n = len(hosts)
        self._n = n
        skus = [host.sku for host in hosts]
        self._count = np.array([float(host.gpu_count) for host in hosts])[:, None]
        self._idle_w = np.array([sku.idle_w for sku in skus])[:, None]
        self._tdp_w = np.array([sku.tdp_w for sku in skus])[:, None]
        if len(set(skus)) > 1:
            named = ", ".join(sorted({sku.name for sku in skus}))
            raise ValueError(f"a row over weeks has one kind of board; this one has {named}")
        self._curves = curves_of(skus[0])
        self._max_mhz = np.array([float(sku.max_mhz) for sku in skus])
        self._min_mhz = np.array([float(sku.min_mhz) for sku in skus])
        self._step_mhz = np.array([float(sku.step_mhz) for sku in skus])
        self._overhead_idle = np.array([host.overhead_idle_w for host in hosts])[:, None]
        self._overhead_span = np.array([host.overhead_max_w for host in hosts])[:, None] - self._overhead_idle
        self._class = np.array([_PRIORITIES.index(host.priority) for host in hosts])
        self._offset = np.arange(n, dtype=np.float64)[:, None]

        self._locks = np.tile(self._max_mhz, (len(_PATHS), 1))
        self._pending: list[_Write] = []  # that `_locks`, which hold at step `_at`, do not know of
        self._held: list[list[float]] = self._locks.T.tolist()  # the locks of each host at `now`, by path
        self._ceilings: list[float] = self._max_mhz.tolist()  # what they come to
        self._under_way: list[_Write] = []  # that `_held` does not know of
        self._written = 0
        none, nobody = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._state = _State(
            _Waiting(nobody, none, none, none, none),
            _Running(nobody, none, none, none),
            self._overhead_idle[:, 0].copy(),
        )
        self._heat = 0.6**2  # of the breaker, at the same moment
        self._at = 0  # the step that `_state` is the beginning of
        self._asked = 0  # steps handed on
        self._block = -1
        self._new = Arrivals(none, nobody, none, none)
        self._new_work = none
        self._ahead: _Stretch | None = None
        self._rewritten = False
        self._hot = False
        self.totals = self._nothing()

    def _nothing(self) -> Totals:
        return Totals(
            capped_host_s=np.zeros(2),
            arrived=np.zeros(2, dtype=np.int64),
            done=np.zeros(2, dtype=np.int64),
            tokens=np.zeros(2),
            latency_counts=np.zeros((2, _BINS), dtype=np.int64),
        )

    def forget(self) -> None:
        """Count from the last step asked for on: what came before was to warm the row up."""
        self._commit(self._asked)
        self.totals = self._nothing()

    def settle(self) -> Totals:
        """The totals of all steps asked for."""
        self._commit(self._asked)
        return self.totals

    # ---- time ----

    @property
    def now(self) -> Instant:
        """The end of the last step asked for, milliseconds from the start."""
        return self._asked * STEP_MS

    def power_w(self, step: int) -> float:
        """Mean power of the row over step `step` (from 0). Raises ValueError unless it is the next one."""
        if step != self._asked:
            raise ValueError(f"step {step} was asked for, the next one is {self._asked}")
        ahead = self._ahead
        if ahead is None or self._rewritten or step >= ahead.first + len(ahead.power_w):
            # Where a clock was just set the next is soon set too, and most of a long stretch thrown away.
            glance = _GLANCE if self._rewritten else _BLOCK
            if ahead is None or self._rewritten or step >= ahead.until:
                self._commit(step)
                self._rewritten = False
            block = step // _BLOCK
            if block != self._block:
                self._block, self._new = block, self._load.block(block)
                self._new_work = self._curves.prefill_seconds(self._new.prompt)
            ahead = self._ahead = self._work_out(self._at, (block + 1) * _BLOCK - self._at, glance)
        self._asked += 1
        self._land()
        return ahead.power_w[step - ahead.first]

    def course_w(self, most: int = _BLOCK) -> list[float]:
        """Power of the next steps, at most so many and none beyond the block, where nobody sets a clock: all
        handed on at once. For rows that nobody controls."""
        first = self._asked
        course = [self.power_w(first)]
        ahead = self._ahead
        assert ahead is not None
        more = ahead.power_w[first + 1 - ahead.first :][: most - 1]
        self._asked += len(more)
        self._land()
        return course + more

    def _commit(self, upto: int) -> None:
        """Make what was handed on up to a step the past."""
        ahead = self._ahead
        if ahead is None or upto == self._at:
            self._ahead = None if self._rewritten else ahead
            return
        if upto < ahead.until:
            ahead = self._work_out(self._at, upto - self._at)
        self._ahead = None
        totals = self.totals
        power = np.array(ahead.power_w)
        totals.seconds += power.size * _DT
        totals.energy_j += float(power.sum()) * _DT
        totals.peak_w = max(totals.peak_w, float(power.max()))
        totals.over_budget_s += float((power > self.budget_w).sum()) * _DT
        hot = np.concatenate(((self._hot,), self._trips(power)))
        totals.trips += int((hot[1:] & ~hot[:-1]).sum())
        self._hot = bool(hot[-1])
        totals.capped_host_s += np.bincount(self._class, ahead.capped, 2)
        totals.arrived += np.bincount(self._class, ahead.arrived, 2).astype(np.int64)
        which = self._class[ahead.done_host]
        totals.done += np.bincount(which, minlength=2)
        totals.tokens += np.bincount(which, ahead.done_output, 2)
        bins = (np.log(np.maximum(ahead.done_latency_s, _FIRST_S) / _FIRST_S) / _BIN).astype(np.int64)
        flat = which * _BINS + np.minimum(bins, _BINS - 1)
        totals.latency_counts += np.bincount(flat, minlength=2 * _BINS).reshape(2, _BINS)
        self._state, self._at = ahead.end, upto
        while self._pending and self._pending[0].due <= upto * STEP_MS:
            write = heapq.heappop(self._pending)
            self._locks[write.path, write.host] = write.mhz

    def _trips(self, power: FloatArray) -> npt.NDArray[np.bool_]:
        """In which of the next steps the breaker would be open; its heat goes on by them."""
        warm = -np.expm1(-_DT / self._curve.time_constant_s)
        square = np.square(power / self.budget_w)
        heat, _ = lfilter((warm,), (1.0, warm - 1.0), square, zi=np.array([(1.0 - warm) * self._heat]))
        self._heat = float(heat[-1])
        opens: npt.NDArray[np.bool_] = (heat >= self._curve.pickup_ratio**2) | (
            power >= self._curve.instant_ratio * self.budget_w
        )
        return opens

    # ---- settings ----

    def write(self, path: Path, host: int, mhz: float) -> None:
        """Ask for a clock lock on a host's GPUs by a path; at or above the highest clock is none. It lands
        after the path's latency: in_band 50 ms, brake 5 s (published), out_of_band as `faults` say."""
        late = _BOARD_LATE_MS
        if path == "brake":
            late = 5 * SECOND
        elif path == "out_of_band":
            chance, loss = self._rng.random(2).tolist()
            late = round(
                self.faults.latency_s * SECOND * (chance if self.faults.spread == "uniform" else 1.0)
            )
            if loss < self.faults.loss_ratio:
                self.lost_writes += 1
                return
        self._written += 1
        place = _PATHS.index(path)
        write = _Write(self.now + late, self._written, place, host, mhz)
        heapq.heappush(self._pending, write)
        heapq.heappush(self._under_way, write)
        self._land()
        self._rewritten = True

    def _land(self) -> None:
        """Let what is due by now be in force."""
        while self._under_way and self._under_way[0].due <= self.now:
            write = heapq.heappop(self._under_way)
            held = self._held[write.host]
            held[write.path] = write.mhz
            self._ceilings[write.host] = float(self.hosts[write.host].sku.round_down(min(held)))

    def landings(self, host: int) -> list[Instant]:
        """When the writes under way to a host land, the next first."""
        return sorted(write.due for write in self._under_way if write.host == host)

    def clock_mhz(self, host: int) -> float:
        """The SM clock that a host's GPUs show now: their ceiling at work, their lowest at rest."""
        ahead = self._ahead
        if (
            ahead is not None
            and self._asked > ahead.first
            and ahead.busy[host, self._asked - 1 - ahead.first] <= 0.0
        ):
            return float(min(self._min_mhz[host], self.ceiling_mhz(host)))
        return self.ceiling_mhz(host)

    def ceiling_mhz(self, host: int) -> float:
        """The clock that a host is held to now."""
        return self._ceilings[host]

    def _supported(self, mhz: FloatArray) -> FloatArray:
        """Clocks rounded down to what the boards support."""
        steps = np.maximum(0.0, (mhz - self._min_mhz) // self._step_mhz)
        supported: FloatArray = np.minimum(self._max_mhz, self._min_mhz + steps * self._step_mhz)
        return supported

    def _clocks(self, first: int, steps: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """How fast prompts and answers go, the share of dynamic power, and the share of time below the
        highest clock: (hosts, 1) where nothing lands, else (hosts, steps), a step in which something lands
        blended."""
        begin, end = first * STEP_MS, (first + steps) * STEP_MS
        columns = self._factors(self._locks)
        due = sorted(write for write in self._pending if write.due < end)
        if not due:
            return columns
        whole = tuple(np.repeat(column, steps, axis=1) for column in columns)
        locks = self._locks.copy()
        for number, write in enumerate(due):
            locks[write.path, write.host] = write.mhz
            if number + 1 < len(due) and due[number + 1].due == write.due:
                continue
            after = self._factors(locks)
            at = max(0, write.due - begin)
            step, part = at // STEP_MS, 1.0 - (at % STEP_MS) / STEP_MS
            for column, now in zip(whole, after, strict=True):
                before = column[:, -1:].copy()
                column[:, step + 1 :] = now
                column[:, step : step + 1] += part * (now - before)
        return whole  # type: ignore[return-value]

    def _factors(self, locks: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        clock = (self._supported(locks.min(axis=0)) / self._max_mhz)[:, None]
        return (
            1.0 / (0.9 / clock + 0.1),
            1.0 / (0.15 / clock + 0.85),
            0.35 * clock + 0.65 * clock**2.5,
            (clock < 1.0).astype(np.float64),
        )

    # ---- the plant ----

    def _work_out(self, first: int, steps: int, glance: int = _BLOCK) -> _Stretch:
        """The course of `steps` steps from `_state`, which is the beginning of step `first`, or no more than
        its first `glance`, which are to the last bit what they are in the whole."""
        begin_s, state, until = first * _DT, self._state, first + steps
        come = slice(*self._new.at_s.searchsorted((begin_s, begin_s + steps * _DT)))
        new, new_work = self._new.part(come), self._new_work[come]
        prompts, *rest = self._clocks(first, steps)
        speed = np.broadcast_to(prompts, (self._n, steps))
        steps = min(steps, glance)
        answers, power_share, capped = (column[:, :steps] for column in rest)
        read = self._read_prompts(begin_s, speed, new, new_work, steps)
        running = np.bincount(state.running.host, minlength=self._n).astype(np.float64)[:, None]
        answers = np.broadcast_to(answers, (self._n, steps))
        told = self._answer(read, answers, running, np.broadcast_to(running, (self._n, steps)))
        told = self._answer(read, answers, running, told.batch)
        busy = 0.5 * ((told.batch > 0.5) | (read.began > 0)) + 0.5 * (told.after > 0.5)
        decoding = np.minimum(busy, 1.0) * (1.0 - read.prefilling)
        gpus_w = self._gpus_w(read, told, decoding, power_share)

        span = self._count * (self._tdp_w - self._idle_w)
        load = _ratio((gpus_w - self._count * self._idle_w) / span)
        wanted_w = self._overhead_idle + load * self._overhead_span
        lag = -np.expm1(-_DT / FAN_LAG_S)
        before_w = (1.0 - lag) * state.overhead_w[:, None]
        rest_w, _ = lfilter((lag,), (1.0, lag - 1.0), wanted_w, axis=1, zi=before_w)
        power_w = (gpus_w + rest_w).sum(axis=0)

        run = state.running
        at_s = np.concatenate((run.at_s, read.at_s))
        output = np.concatenate((run.output, read.output))
        host, over = told.host, told.over
        still = host[~over]
        running_on = _Running(still, at_s[~over], output[~over], told.target[~over] - told.decoded[still, -1])
        ended, step = host[over], told.over_step
        beyond = (told.decoded[ended, step] - told.target[over]) / told.rate[ended, step]
        return _Stretch(
            first=first,
            until=until,
            power_w=power_w.tolist(),
            busy=read.prefilling + decoding,
            end=_State(read.waiting, running_on, rest_w[:, -1].copy()),
            arrived=np.bincount(new.host, minlength=self._n),
            done_host=ended,
            done_latency_s=begin_s + (step + 1.0 - beyond) * _DT - at_s[over],
            done_output=output[over],
            capped=(capped.sum(axis=1) if capped.shape[1] == steps else capped[:, 0] * steps) * _DT,
        )

    def _read_prompts(
        self, begin_s: float, speed: FloatArray, new: Arrivals, new_work: FloatArray, shown: int
    ) -> _Prompts:
        """The prompts that wait and those that arrive, at these speeds (hosts, steps), in the first `shown`
        steps. All of them are laid end to end, so that no sum depends on how many are shown."""
        n, steps = speed.shape
        ends = np.cumsum(speed * _DT, axis=1)  # work time at the steps' ends

        # By host, then by arrival: those from before, then the new ones.
        wait = self._state.waiting
        host = np.concatenate((wait.host, new.host))
        order = np.argsort(host.astype(np.int16), kind="stable")
        host = host[order]
        at = np.concatenate((wait.at_s, new.at_s))[order]
        prompt = np.concatenate((wait.prompt, new.prompt))[order]
        output = np.concatenate((wait.output, new.output))[order]
        work = np.concatenate((wait.work, new_work))[order]
        since = np.maximum(0.0, at - begin_s)
        step = np.minimum((since / _DT).astype(np.int64), steps - 1)
        arrived_at = ends[host, step] - ((step + 1) * _DT - since) * speed[host, step]
        arrived_at = np.where(at < begin_s, 0.0, arrived_at)

        # Lindley's recursion for all hosts in one running maximum: each host lies above the one before.
        total = np.cumsum(work)
        longest = float(np.bincount(host, work, n).max(initial=0.0))
        lift = host * (float(ends[:, -1].max()) + longest + 1.0)
        through = np.maximum.accumulate(arrived_at - (total - work) + lift) + total - lift

        # How much is done by the end of each step.
        width = float(ends[:, -1].max()) + 1.0
        start = np.cumsum(np.bincount(host, minlength=n)) - np.bincount(host, minlength=n)
        ends, speed, near, steps = ends[:, :shown], speed[:, :shown], step < shown, shown
        cell = (host * steps + step)[near]
        number = np.cumsum(np.bincount(cell, minlength=n * steps).reshape(n, steps), axis=1)
        done = np.zeros((n, steps + 1))
        if host.size:
            before = np.concatenate(((0.0,), total))[start][:, None]
            last = np.maximum(start[:, None] + number - 1, 0)
            left = np.maximum(0.0, through[last] - ends)
            done[:, 1:] = np.where(number > 0, total[last] - before - left, 0.0)
        prefilling = _ratio((done[:, 1:] - done[:, :-1]) / (speed * _DT))

        # When each prompt was through, and how many tokens lie in each step's prompts.
        columns = (host, at, prompt, output, work, through)
        host, at, prompt, output, work, through = (column[near] for column in columns)
        ready = through <= ends[host, -1]
        ready_host, ready_at = host[ready], through[ready]
        found = np.searchsorted((ends + self._offset * width).ravel(), ready_at + ready_host * width)
        ready_step = np.minimum(found - ready_host * steps, steps - 1)
        gone = np.bincount(ready_host * (steps + 1) + ready_step + 1, prompt[ready], n * (steps + 1))
        come = np.bincount(cell, prompt, n * steps).reshape(n, steps)
        tokens = np.cumsum(come - gone.reshape(n, steps + 1)[:, :steps], axis=1)

        left_work = np.minimum(work, through - ends[host, -1])
        waiting = _Waiting(*(column[~ready] for column in (host, at, prompt, output, left_work)))
        back = (ends[ready_host, ready_step] - ready_at) / speed[ready_host, ready_step] / _DT
        began = np.bincount(ready_host * steps + ready_step, minlength=n * steps).reshape(n, steps)
        return _Prompts(
            prefilling, tokens, began, waiting, ready_host, ready_step, back, at[ready], output[ready]
        )

    def _answer(self, read: _Prompts, speed: FloatArray, running: FloatArray, batch: FloatArray) -> _Answers:
        """The answers, at these speeds, if so many (hosts, steps) are under way at each step's beginning."""
        n, steps = speed.shape
        before = self._state.running
        kept = (1.0 - (1.0 - DECODE_KEPT) * read.prefilling) * speed * (_DT / self._curves.token_s)
        rate = kept / (1.0 + self._curves.batch_cost * np.maximum(0.0, batch - 1.0))  # tokens per step
        decoded = np.cumsum(rate, axis=1)
        at_ready = decoded[read.host, read.step] - read.back * rate[read.host, read.step]
        target = np.concatenate((before.target, at_ready + read.output))
        host = np.concatenate((before.host, read.host))
        width = float(decoded[:, -1].max()) + 1.0
        over = target <= decoded[host, -1]
        ended_host = host[over]
        found = np.searchsorted((decoded + self._offset * width).ravel(), target[over] + ended_host * width)
        over_step = np.minimum(found - ended_host * steps, steps - 1)
        ended = np.bincount(ended_host * steps + over_step, minlength=n * steps).reshape(n, steps)
        change = read.began - ended
        after = running + np.cumsum(change, axis=1)
        return _Answers(host, target, over, over_step, rate, decoded, after - change, after)

    def _gpus_w(
        self, read: _Prompts, told: _Answers, decoding: FloatArray, power_share: FloatArray
    ) -> FloatArray:
        """What each server's GPUs draw in each step."""
        prompt_w = self._curves.prompt_peak_ratio(read.tokens) * self._tdp_w
        decode_w: FloatArray | float = self._curves.decode_w
        if self._curves.answer_w:
            further = np.maximum(0.0, 0.5 * (told.batch + told.after) - 1.0)
            decode_w = np.minimum(decode_w + self._curves.answer_w * further, self._tdp_w)
        dynamic_w = read.prefilling * (prompt_w - self._idle_w) + decoding * (decode_w - self._idle_w)
        watts: FloatArray = self._count * (self._idle_w + dynamic_w * (power_share * self._power_ratio))
        return watts


def _ratio(array: FloatArray) -> FloatArray:
    """An array kept between 0 and 1; `np.clip` takes longer to begin."""
    kept: FloatArray = np.minimum(np.maximum(array, 0.0), 1.0)
    return kept
