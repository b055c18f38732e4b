"""LLM requests that arrive at a row: who asks, when, with how long a prompt and answer.

Arrivals are a Poisson process whose rate follows a load profile, spread over the hosts; the mix of
requests is the one recalled from the POLCA study (ranges and shares are recalled, not re-checked; that
lengths are uniform within a range is our choice). All arrivals of a minute are drawn at once, from a
generator that nothing else draws from: what is asked does not depend on how the row is controlled, so
two runs with one seed see the same requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.topology import Host, Priority
from schemas.units import FloatArray

IntArray = npt.NDArray[np.int64]

MINUTE_S = 60
"""Seconds per draw."""


class RequestKind(msgspec.Struct, frozen=True):
    """One kind of request: its share of all requests, whose hosts serve it, and the ranges of its
    prompt and output lengths in tokens."""

    name: str
    priority: Priority
    share_ratio: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]


MIX: tuple[RequestKind, ...] = (
    RequestKind("summarize", "low", 0.25, (2048, 8192), (256, 512)),
    RequestKind("search", "high", 0.25, (512, 2048), (1024, 2048)),
    RequestKind("chat", "low", 0.25, (2048, 4096), (128, 2048)),
    RequestKind("chat", "high", 0.25, (2048, 4096), (128, 2048)),
)
"""The study's workload mix (recalled): a quarter summaries, a quarter searches, half chats, and the
chats half and half of each priority."""


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Demand on top of the profile: rises over `rise_s` from `at_s`, stays `hold_s`, falls as it rose.
    `height_ratio` is in the profile's own unit."""

    at_s: float
    rise_s: float
    hold_s: float
    height_ratio: float


class LoadProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Demand over time.

    `requests_per_s` is the mean rate of one host at ratio 1. `points` are (second, ratio), joined by
    straight lines and held at both ends. `wander_ratio` is the standard deviation of a slow common
    wander (time constant 60 s) that all hosts share, as a share of the demand. `again_s`: the demand
    begins anew after so long, 0: never.
    """

    requests_per_s: float
    points: tuple[tuple[float, float], ...]
    bursts: tuple[Burst, ...] = ()
    wander_ratio: float = 0.0
    again_s: float = 0.0

    def ratio(self, at_s: FloatArray) -> FloatArray:
        """Demand at each of these seconds since the start, wander excluded."""
        at_s = np.mod(at_s, self.again_s) if self.again_s else at_s
        at, level = zip(*self.points, strict=True)
        demand: FloatArray = np.interp(at_s, at, level)
        for burst in self.bursts:
            end = burst.at_s + burst.rise_s + burst.hold_s
            corners = (burst.at_s, burst.at_s + burst.rise_s, end, end + burst.rise_s)
            demand = demand + np.interp(at_s, corners, (0.0, burst.height_ratio, burst.height_ratio, 0.0))
        return demand

    def later(self, by_s: float) -> LoadProfile:
        """The same demand for a run that begins `by_s` into it."""
        return msgspec.structs.replace(
            self,
            points=tuple((at - by_s, level) for at, level in self.points),
            bursts=tuple(msgspec.structs.replace(burst, at_s=burst.at_s - by_s) for burst in self.bursts),
        )

    def faster(self, by: float) -> LoadProfile:
        """The same demand, going up and down `by` times as fast."""
        return msgspec.structs.replace(
            self,
            points=tuple((at / by, level) for at, level in self.points),
            bursts=tuple(
                msgspec.structs.replace(
                    burst, at_s=burst.at_s / by, rise_s=burst.rise_s / by, hold_s=burst.hold_s / by
                )
                for burst in self.bursts
            ),
            again_s=self.again_s / by,
        )


class Arrivals(NamedTuple):
    """Requests in the order they arrive; all arrays have shape (requests,).

    `at_s` counts from the start of the run, `host` indexes the row's hosts.
    """

    at_s: FloatArray
    host: IntArray
    prompt: FloatArray
    output: FloatArray

    def part(self, rows: slice | IntArray | npt.NDArray[np.bool_]) -> Arrivals:
        """Some of them, by place or mask."""
        return Arrivals(self.at_s[rows], self.host[rows], self.prompt[rows], self.output[rows])


class Load(Protocol):
    """Where requests come from. Asked for each minute once, in order; those before the start of the run
    (negative ones) warm the row up."""

    def minute(self, index: int) -> Arrivals:
        """The requests that arrive in the half-open minute `index` of the run."""


class PoissonLoad:
    """Requests drawn at random: a profile, a mix, and a generator of its own.

    Each priority's requests are a Poisson process, and go to a host of that priority, each equally
    likely; so each host's own are a Poisson process too. A priority that no host serves is not asked for.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        profile: LoadProfile,
        rng: np.random.Generator,
        mix: Sequence[RequestKind] = MIX,
    ) -> None:
        self._profile = profile
        self._rng = rng
        self._wander = 0.0
        self._kinds: list[Sequence[RequestKind]] = []
        self._members: list[IntArray] = []
        self._rate: list[float] = []
        for priority in get_args(Priority):
            kinds = [kind for kind in mix if kind.priority == priority]
            members = [place for place, host in enumerate(hosts) if host.priority == priority]
            if kinds and members:
                share = sum(kind.share_ratio for kind in kinds)
                self._kinds.append(kinds)
                self._members.append(np.array(members))
                self._rate.append(profile.requests_per_s * len(hosts) * share)

    def minute(self, index: int) -> Arrivals:
        """One draw of counts per priority and second, then the moment, kind and lengths of each request."""
        rng = self._rng
        seconds = np.arange(MINUTE_S, dtype=np.float64) + index * MINUTE_S
        demand = np.maximum(0.0, self._profile.ratio(seconds) * (1.0 + self._wandering()))
        parts = []
        for which, (kinds, members) in enumerate(zip(self._kinds, self._members, strict=True)):
            second = np.repeat(seconds, rng.poisson(demand * self._rate[which]))
            at = np.sort(second + rng.random(second.size))
            share = np.array([kind.share_ratio for kind in kinds])
            kind = rng.choice(len(kinds), at.size, p=share / share.sum())
            ranges = np.array([(k.prompt_tokens, k.output_tokens) for k in kinds], dtype=np.float64)[kind]
            spread = ranges[:, :, 1] - ranges[:, :, 0] + 1.0
            tokens = np.floor(ranges[:, :, 0] + rng.random((at.size, 2)) * spread)
            parts.append(Arrivals(at, rng.choice(members, at.size), tokens[:, 0], tokens[:, 1]))
        at, host, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Arrivals(at, host, prompt, output).part(np.argsort(at, kind="stable"))

    def _wandering(self) -> FloatArray:
        """A minute of a first-order wander with time constant 60 s, one value per second."""
        keep = np.exp(-1.0 / 60.0)
        push = self._profile.wander_ratio * np.sqrt(1.0 - keep**2) * self._rng.standard_normal(MINUTE_S)
        values = np.empty(MINUTE_S)
        for second in range(MINUTE_S):
            self._wander = keep * self._wander + push[second]
            values[second] = self._wander
        return values


class RecordedLoad:
    """Requests that were recorded, as the public Azure traces have them (TIMESTAMP, ContextTokens,
    GeneratedTokens): seconds since the start of the recording, and tokens.

    They go to all hosts at random, since the recording names none, nor a priority. `copies` scales the
    load: each request comes a Poisson number of times with that mean, each within 30 s of its own
    moment, so that a recording of one service can fill a row.
    """

    def __init__(
        self,
        at_s: FloatArray,
        prompt: FloatArray,
        output: FloatArray,
        hosts: int,
        rng: np.random.Generator,
        copies: float = 1.0,
    ) -> None:
        which = np.repeat(np.arange(at_s.size), rng.poisson(copies, at_s.size))
        at = np.abs(at_s[which] + rng.uniform(-30.0, 30.0, which.size))
        order = np.argsort(at)
        self._at, which = at[order], which[order]
        self._host = rng.integers(0, hosts, which.size)
        self._prompt, self._output = np.maximum(1.0, prompt[which]), np.maximum(1.0, output[which])

    def minute(self, index: int) -> Arrivals:
        """The recorded requests of that minute; none before the recording begins or after it ends."""
        first, last = np.searchsorted(self._at, (index * MINUTE_S, (index + 1) * MINUTE_S))
        part = slice(first, last)
        return Arrivals(self._at[part], self._host[part], self._prompt[part], self._output[part])
