"""Inference servers: a continuous-batching engine each, and what they draw and how warm they get.

All servers of a row step together as arrays of shape (hosts,), and (hosts, gpus) where boards differ.
No object stands for a request: a server's prompts are worked off first come first served, so its own
count of prefill seconds done says which are through; its answers share the decode rate equally, so its
own count of tokens per answer says which are complete.

Where the figures come from:

- Seconds and watts by prompt, token and batch: `twin.serving.curves`. Prompts that wait together are
  prefilled together, so the power follows the tokens waiting: in the published table four prompts of 512
  peak like one of 2048.
- Clock axis: synthetic (our derivation, no published per-phase curve exists), see `Sku.power_fraction`:
  prefill time 0.9 fmax/f + 0.1, decode time 0.15 fmax/f + 0.85.
- Decode while a prompt runs, and on A100 the batch's cost per token: our choice, such that the study's
  clock for low priority (1110 MHz) costs the latency it reports, at most some 7 %.
- Temperature: inlet + beta x power with a first-order lag; A100's beta from public data (derived), the
  others' as fitted; the spread between boards U(-5, 5) °C.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from schemas.topology import Host, Priority
from schemas.units import FloatArray
from twin.serving.curves import curves_of
from twin.workload import Arrivals, IntArray

DECODE_KEPT = 0.9  # share of the decode rate kept while a prompt runs
INLET_C = 25.0
THERMAL_LAG_S = 8.0
FAN_LAG_S = 10.0  # fans and conversion follow the GPUs' load this slowly (our choice)

PRIORITIES: tuple[Priority, ...] = ("low", "high")

# Latencies are counted in bins 0.5 % wide from 10 ms to about 3 h: quantiles to a quarter of a percent.
_BIN = 0.005
_FIRST_S = 0.01
_BINS = 2800


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one priority's requests. Arrived = done + waiting + decoding + lost."""

    arrived: int
    done: int
    waiting: int
    decoding: int
    lost: int
    tokens: float
    """Answer tokens of the requests done."""


class Servers:
    """A row's servers. Settings are the arrays `lock_mhz`, `floor_mhz` and `limit_w` (hosts, gpus);
    call `retune` after writing to them.

    A power limit acts one step after the excess, as a limit does: a spike shorter than a step escapes it.
    """

    def __init__(self, hosts: Sequence[Host], dt_s: float, rng: np.random.Generator) -> None:
        """`rng` draws the boards' temperature offsets only."""
        self.dt_s = dt_s
        gpus = max(host.gpu_count for host in hosts)
        shape = (len(hosts), gpus)
        skus = [host.sku for host in hosts]
        self._curves = tuple(dict.fromkeys(curves_of(sku) for sku in skus))
        boards = [curves_of(sku) for sku in skus]
        self._curve = np.array([self._curves.index(board) for board in boards])

        def column(values: Sequence[float]) -> FloatArray:
            return np.array(values, dtype=np.float64)[:, None]

        self.present = np.arange(gpus) < column([host.gpu_count for host in hosts])
        self.max_mhz = column([sku.max_mhz for sku in skus])
        self.min_mhz = column([sku.min_mhz for sku in skus])
        self.step_mhz = column([sku.step_mhz for sku in skus])
        self.tdp_w = column([sku.tdp_w for sku in skus])
        self.idle_w = column([sku.idle_w for sku in skus])
        self._decode_w = column([board.decode_w for board in boards])
        self._answer_w = column([board.answer_w for board in boards])
        self._token_s = np.array([board.token_s for board in boards])
        self._batch_cost = np.array([board.batch_cost for board in boards])
        self._beta = column([board.celsius_per_w for board in boards])
        offset = column([board.offset_c for board in boards])
        self._base_c = INLET_C + offset + rng.uniform(-5.0, 5.0, shape)
        self.inlet_rise_c = np.zeros((len(hosts), 1))
        """How much warmer than INLET_C the air is that each host draws; to be written to."""
        self._overhead_idle = np.array([host.overhead_idle_w for host in hosts])
        self._overhead_span = np.array([host.overhead_max_w - host.overhead_idle_w for host in hosts])
        count = self.present.sum(axis=1)
        self._load_zero = count * self.idle_w[:, 0]
        self._load_span = count * (self.tdp_w - self.idle_w)[:, 0]
        self._class = np.array([PRIORITIES.index(host.priority) for host in hosts])
        # The inverse of Sku.power_fraction, which is the same for every board.
        self._axis = np.linspace(0.0, 1.0, 201)
        self._axis_power = 0.35 * self._axis + 0.65 * self._axis**2.5

        self.lock_mhz = np.broadcast_to(self.max_mhz, shape).copy()
        self.floor_mhz = np.broadcast_to(self.min_mhz, shape).copy()
        self.limit_w = np.broadcast_to(self.tdp_w, shape).copy()
        self.alive = np.ones(len(hosts), dtype=bool)
        self._limit_clock = np.ones(shape)
        self.limited = np.zeros(shape, dtype=bool)
        self.retune()

        zeros = np.zeros(len(hosts))
        self._asked, self._prefilled, self._decoded = zeros.copy(), zeros.copy(), zeros.copy()
        self._at, self._host = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._prompt, self._output, self._mark = np.zeros(0), np.zeros(0), np.zeros(0)
        self._run_at, self._run_host = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._run_output, self._run_end = np.zeros(0), np.zeros(0)
        self._counts = {name: np.zeros(2, dtype=np.int64) for name in ("arrived", "done", "lost")}
        self._tokens = np.zeros(2)
        self.latency_counts = np.zeros((2, _BINS), dtype=np.int64)

        self.prefilling, self.decoding = zeros.copy(), zeros.copy()
        """Share of the last step that each server prefilled, and only decoded; shape (hosts,)."""
        self.gpu_w = np.where(self.present, self.idle_w, 0.0)
        self.prefill_w = self.gpu_w.copy()
        self.decode_w = self.gpu_w.copy()
        self.core_c = self._base_c + self._beta * self.gpu_w
        self.energy_j = np.zeros(shape)
        self._overhead_w = self._overhead_idle.copy()
        self.wall_w = self.gpu_w.sum(axis=1) + self._overhead_w

    # ---- settings ----

    def retune(self) -> None:
        """Take over the settings written to the arrays; clocks go down to what the board supports."""
        steps = np.maximum(0.0, (self.lock_mhz - self.min_mhz) // self.step_mhz)
        self._ceiling = np.minimum(self.max_mhz, self.min_mhz + steps * self.step_mhz) / self.max_mhz
        self.may_limit = bool((self.limit_w < self.tdp_w).any())
        if not self.may_limit:
            self._limit_clock[:] = 1.0
            self.limited[:] = False
        self._clock_moved()

    def darken(self) -> None:
        """Take the power away from every host with `alive` False; its requests are lost."""
        for hosts in (self._host, self._run_host):
            self._count("lost", hosts[~self.alive[hosts]])
        keep, run = self.alive[self._host], self.alive[self._run_host]
        self._wait(keep)
        self._run(run)
        dark = ~self.alive
        self._prefilled[dark] = self._asked[dark]
        for share in (self.prefilling, self.decoding, self.wall_w, self._overhead_w):
            share[dark] = 0.0
        self.gpu_w[dark] = 0.0

    @property
    def clock_ratio(self) -> FloatArray:
        """The clock each GPU runs at when it works, as a share of its highest; (hosts, gpus)."""
        return self._clock

    @property
    def sm_mhz(self) -> FloatArray:
        """The SM clock each GPU shows: an idle one goes down as far as its lock lets it."""
        busy = (self.prefilling + self.decoding > 0.0)[:, None]
        low = np.minimum(self.floor_mhz, self._ceiling * self.max_mhz)
        shown: FloatArray = np.where(busy, self._clock * self.max_mhz, low)
        return np.round(shown)

    def _clock_moved(self) -> None:
        self._clock = np.minimum(self._ceiling, self._limit_clock)
        self._power = 0.35 * self._clock + 0.65 * self._clock**2.5
        # The GPUs of a server work in step: the slowest sets the pace.
        pace = np.where(self.present, self._clock, 1.0).min(axis=1)
        self._slow_prefill = 0.9 / pace + 0.1
        self._slow_decode = 0.15 / pace + 0.85

    # ---- time ----

    def step(self, end_s: float, new: Arrivals, marks: FloatArray) -> None:
        """One step of `dt_s` that ends at `end_s`. `new` are its arrivals; `marks` their places in
        their hosts' prefill work, as `places` gives them."""
        dt = self.dt_s
        before = self._prefilled.copy()
        self._enqueue(new, marks)
        waiting_tokens = np.bincount(self._host, weights=self._prompt, minlength=self.alive.size).astype(
            np.float64
        )
        running = np.bincount(self._run_host, minlength=self.alive.size)

        # Prompts.
        work = np.minimum(dt / self._slow_prefill, self._asked - self._prefilled)
        self._prefilled = np.minimum(self._asked, self._prefilled + work)
        self.prefilling = work * self._slow_prefill / dt

        # Answers.
        further = np.maximum(0, running - 1)
        token_s = self._token_s * (1.0 + self._batch_cost * further) * self._slow_decode
        rate = (1.0 - (1.0 - DECODE_KEPT) * self.prefilling) / token_s
        self._decoded += rate * dt
        through = self._mark <= self._prefilled[self._host]
        if through.any():
            host, at = self._host[through], self._at[through]
            slow = self._slow_prefill[host]
            # Done that far into the step, yet not before a lone prompt could have been.
            ready = end_s - dt + (self._mark[through] - before[host]) * slow
            ready = np.maximum(ready, at + self._prefill_seconds(self._prompt[through], host) * slow)
            left = self._decoded[host] - np.maximum(0.0, end_s - ready) * rate[host]
            output = self._output[through]
            self._run_at = np.concatenate((self._run_at, at))
            self._run_host = np.concatenate((self._run_host, host))
            self._run_output = np.concatenate((self._run_output, output))
            self._run_end = np.concatenate((self._run_end, left + output))
            self._wait(~through)
        over = self._decoded[self._run_host] - self._run_end
        done = over >= 0.0
        if done.any():
            host = self._run_host[done]
            self._complete(host, end_s - over[done] / rate[host] - self._run_at[done], self._run_output[done])
            self._run(~done)
        busy = (running > 0) | (np.bincount(self._run_host, minlength=self.alive.size) > 0)
        self.decoding = np.where(busy, 1.0 - self.prefilling, 0.0)

        self._draw_power(self._peak_ratio(waiting_tokens)[:, None] * self.tdp_w, further[:, None])

    def places(self, asked: FloatArray, new: Arrivals) -> FloatArray:
        """Each arrival's place in its host's prefill work: the seconds asked of the host up to and
        including it, at full clock. `asked` (hosts,) counts on from earlier arrivals, in place."""
        order = np.argsort(new.host, kind="stable")
        host = new.host[order]
        total = np.cumsum(self._prefill_seconds(new.prompt[order], host))
        first = np.searchsorted(host, host)
        before = np.concatenate(((0.0,), total))[first]
        marks = np.empty_like(total)
        marks[order] = total - before + asked[host]
        asked[new.host] = marks  # in order of arrival: the last of a host stands
        return marks

    def _prefill_seconds(self, prompt: FloatArray, host: IntArray) -> FloatArray:
        """Seconds of prefill at full clock for prompts of these lengths on these hosts."""
        seconds = self._curves[0].prefill_seconds(prompt)
        for number, curves in enumerate(self._curves[1:], 1):
            there = self._curve[host] == number
            seconds[there] = curves.prefill_seconds(prompt[there])
        return seconds

    def _peak_ratio(self, tokens: FloatArray) -> FloatArray:
        """Power while each host prefills so many prompt tokens, as a share of TDP; (hosts,)."""
        ratio = self._curves[0].prompt_peak_ratio(tokens)
        for number, curves in enumerate(self._curves[1:], 1):
            there = self._curve == number
            ratio[there] = curves.prompt_peak_ratio(tokens[there])
        return ratio

    def _enqueue(self, new: Arrivals, marks: FloatArray) -> None:
        if not new.host.size:
            return
        self._asked[new.host] = marks
        self._count("arrived", new.host)
        lit = self.alive[new.host]
        if not lit.all():
            self._count("lost", new.host[~lit])
            dark = ~self.alive
            self._prefilled[dark] = self._asked[dark]
            new, marks = new.part(lit), marks[lit]
        self._at = np.concatenate((self._at, new.at_s))
        self._host = np.concatenate((self._host, new.host))
        self._prompt = np.concatenate((self._prompt, new.prompt))
        self._output = np.concatenate((self._output, new.output))
        self._mark = np.concatenate((self._mark, marks))

    def _wait(self, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        self._at, self._host, self._prompt = self._at[keep], self._host[keep], self._prompt[keep]
        self._output, self._mark = self._output[keep], self._mark[keep]

    def _run(self, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        self._run_at, self._run_host = self._run_at[keep], self._run_host[keep]
        self._run_output, self._run_end = self._run_output[keep], self._run_end[keep]

    def _complete(self, host: IntArray, latency_s: FloatArray, output: FloatArray) -> None:
        which = self._class[host]
        self._counts["done"] += np.bincount(which, minlength=2)
        self._tokens += np.bincount(which, output, 2)
        bins = (np.log(np.maximum(latency_s, _FIRST_S) / _FIRST_S) / _BIN).astype(np.int64)
        np.add.at(self.latency_counts, (which, np.minimum(bins, _BINS - 1)), 1)

    def _count(self, name: str, host: IntArray) -> None:
        self._counts[name] += np.bincount(self._class[host], minlength=2)

    def _draw_power(self, prompt_w: FloatArray, further: FloatArray) -> None:
        dt = self.dt_s
        idle = self.idle_w
        prefill, decode = self.prefilling[:, None], self.decoding[:, None]
        decode_w = np.minimum(self._decode_w + self._answer_w * further, self.tdp_w)
        full = prefill * (prompt_w - idle) + decode * (decode_w - idle)
        lit = self.present & self.alive[:, None]
        self.prefill_w = np.where(lit, idle + (prompt_w - idle) * self._power, 0.0)
        self.decode_w = np.where(lit, idle + (decode_w - idle) * self._power, 0.0)
        self.gpu_w = np.where(lit, idle + full * self._power, 0.0)
        self.energy_j += self.gpu_w * dt
        warm = self._base_c + self.inlet_rise_c + self._beta * self.gpu_w
        self.core_c += (warm - self.core_c) * -np.expm1(-dt / THERMAL_LAG_S)
        gpus = self.gpu_w.sum(axis=1)
        load = np.clip((gpus - self._load_zero) / self._load_span, 0.0, 1.0)
        overhead = self._overhead_idle + load * self._overhead_span
        self._overhead_w += (overhead - self._overhead_w) * -np.expm1(-dt / FAN_LAG_S)
        self.wall_w = np.where(self.alive, gpus + self._overhead_w, 0.0)
        if self.may_limit:
            # The clock at which this step's work would have stayed within the limit rules the next.
            allowed = (self.limit_w - idle) / np.maximum(full, 1e-9)
            self._limit_clock = np.where(
                (allowed < 1.0) & (self.limit_w < self.tdp_w),
                np.interp(allowed, self._axis_power, self._axis),
                1.0,
            )
            self._limit_clock = np.maximum(self._limit_clock, self.min_mhz / self.max_mhz)
            self.limited = self._limit_clock < self._ceiling
            self._clock_moved()

    # ---- bookkeeping ----

    def requests(self, priority: Priority) -> Requests:
        """What became of this priority's requests so far."""
        which = PRIORITIES.index(priority)
        return Requests(
            arrived=int(self._counts["arrived"][which]),
            done=int(self._counts["done"][which]),
            waiting=int((self._class[self._host] == which).sum()),
            decoding=int((self._class[self._run_host] == which).sum()),
            lost=int(self._counts["lost"][which]),
            tokens=float(self._tokens[which]),
        )

    def forget_latencies(self) -> None:
        """Count latencies from here on."""
        self.latency_counts[:] = 0

    def latency_s(self, priority: Priority, quantile: float) -> float:
        """A quantile of the time from arrival to last token over the requests done, within 0.25 %; NaN
        before the first."""
        counts = self.latency_counts[PRIORITIES.index(priority)]
        if not counts.any():
            return float("nan")
        rank = quantile * counts.sum()
        below = np.cumsum(counts)
        place = int(np.searchsorted(below, rank))
        inside = (rank - (below[place] - counts[place])) / max(1, counts[place])
        return float(_FIRST_S * np.exp((place + inside) * _BIN))
