"""One replica of a continuous-batching engine: what it does step by step for a list of requests.

Requests wait in one queue and are taken in as long as there are places and KV cache. Prompts are prefilled
whole, together, in a step of their own that holds up the answers; or, where the engine is `chunked`, in
pieces, in the room that the answers leave in each step. Every running answer gets one token a step. When
the cache is full, the newest answer is put back to the head of the queue and its tokens are prefilled again
later. That is how vLLM schedules with preemption by recomputing, which is what the recorded runs ran on.

Steps between two changes of the batch are alike but for the growing context, so they are one segment:
the cost of a run goes with its requests, not with its tokens. How long a step takes is the caller's `Pace`,
linear in what the step does; so the seconds of a whole run are linear in the pace's coefficients as well,
and where all requests are there from the start the course itself does not depend on them at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.units import FloatArray
from twin.workload import IntArray

BLOCK = 16
"""Tokens per block of KV cache (vLLM's default)."""

_WATERMARK = 0.01  # share of the blocks that admission leaves free (vLLM's default)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds per step of a board with a model, at full clock.

    A step of whole prompts takes `prefill_s` + `prompt_token_s` per prompt token. Any other takes `decode_s`
    + `answer_s` per answer in the batch + `context_token_s` per token of their context + `chunk_token_s` per
    prompt token that is worked off beside them: less than by themselves, since the weights are read anyway.
    """

    prefill_s: float
    prompt_token_s: float
    decode_s: float
    answer_s: float
    context_token_s: float
    chunk_token_s: float

    def prefill(self, prompt_tokens: float) -> float:
        """Seconds of one step of whole prompts."""
        return self.prefill_s + self.prompt_token_s * prompt_tokens

    def decode(self, batch: float, context_tokens: float, chunk_tokens: float = 0.0) -> float:
        """Seconds of one step of answers, and of pieces of prompts beside them."""
        chunks = self.chunk_token_s * chunk_tokens
        return self.decode_s + self.answer_s * batch + self.context_token_s * context_tokens + chunks


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds an engine: answers at once, tokens of KV cache, and tokens per step (prompt tokens of a
    step of whole prompts; where `chunked`, prompt and answer tokens together)."""

    max_answers: int
    kv_tokens: int
    step_tokens: int
    chunked: bool = False


class Requests(NamedTuple):
    """What is asked, in the order it arrives; arrays of shape (requests,). Outputs are at least 1."""

    at_s: FloatArray
    prompt: FloatArray
    output: FloatArray


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine did. Segments are in order of time, arrays of shape (segments,). `batch` counts the
    answers that get a token at each step; a step of whole prompts has none. `context_tokens` is summed over
    them, and is that of the segment's mean step. Per request, shape (requests,): the segments at whose ends
    its first and last token came."""

    start_s: FloatArray
    seconds: FloatArray
    steps: FloatArray
    batch: FloatArray
    context_tokens: FloatArray
    prompt_tokens: FloatArray
    first: IntArray
    last: IntArray
    preemptions: int
    chunked: bool

    @property
    def end_s(self) -> FloatArray:
        """When each segment ended."""
        return self.start_s + self.seconds

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """Which segments are steps of whole prompts."""
        whole: npt.NDArray[np.bool_] = (self.prompt_tokens > 0.0) & (not self.chunked)
        return whole


def serve(requests: Requests, limits: EngineLimits, pace: Pace) -> Course:
    """The course of `requests` through one engine. Raises ValueError for a request that can never fit."""
    most = limits.kv_tokens * (1.0 - _WATERMARK) - BLOCK  # what a request holds is rounded up to blocks
    if requests.prompt.size and float((requests.prompt + requests.output).max()) > most:
        longest, room = (requests.prompt + requests.output).max(), limits.kv_tokens
        left = f"a KV cache of {room} tokens" if room > 0 else "a memory that the weights alone overfill"
        raise ValueError(f"a request of {longest:.0f} tokens does not fit into {left}")
    return _Replica(requests, limits, pace).run()


class _Replica:
    def __init__(self, requests: Requests, limits: EngineLimits, pace: Pace) -> None:
        self.limits, self.pace = limits, pace
        self.at = requests.at_s.tolist()
        self.output = requests.output.astype(np.int64)
        self.done_tokens = np.zeros(self.output.size, dtype=np.int64)
        self.prompt = requests.prompt.astype(np.int64)
        self.queue: deque[int] = deque()
        self.next = 0
        self.clock_s = 0.0
        self.preemptions = 0
        # The running answers, oldest first: who, the context of each, and its tokens still to come.
        self.who: IntArray = np.zeros(0, dtype=np.int64)
        self.context, self.left = self.who.copy(), self.who.copy()
        # Prompts taken in and not through: who, and the tokens still to prefill.
        self.begun: deque[tuple[int, int]] = deque()
        self.begun_blocks = 0
        self.first, self.last = np.full(self.output.size, -1), np.full(self.output.size, -1)
        self.segments: list[tuple[float, float, float, float, float, float]] = []

    def run(self) -> Course:
        while self._arrive():
            if self.limits.chunked:
                self._chunks()
            elif picked := self._admit(self.limits.step_tokens):
                tokens = sum(self._needed(who) for who in picked)
                self._segment(self.pace.prefill(tokens), 1, 0, 0.0, tokens)
                self._begin(picked)
            elif self.who.size:
                self._decode()
        columns = np.array(self.segments, dtype=np.float64).reshape(-1, 6).T
        return Course(
            start_s=columns[0],
            seconds=columns[1],
            steps=columns[2],
            batch=columns[3],
            context_tokens=columns[4],
            prompt_tokens=columns[5],
            first=self.first,
            last=self.last,
            preemptions=self.preemptions,
            chunked=self.limits.chunked,
        )

    def _arrive(self) -> bool:
        """Queue what has arrived, waiting for it where there is nothing else to do; False at the end."""
        if not (self.queue or self.who.size or self.begun):
            if self.next == len(self.at):
                return False
            self.clock_s = max(self.clock_s, self.at[self.next])
        while self.next < len(self.at) and self.at[self.next] <= self.clock_s:
            self.queue.append(self.next)
            self.next += 1
        return True

    # ---- prompts ----

    def _needed(self, who: int) -> int:
        """Tokens to prefill before the next answer token can be had."""
        return int(self.prompt[who] + self.done_tokens[who])

    def _admit(self, budget: int) -> list[int]:
        """The requests at the head of the queue that are taken in now, to prefill up to `budget` tokens:
        the first in any case, and the last may pass it only where the engine is chunked."""
        if not self.queue or budget <= 0:
            return []
        limits, tokens = self.limits, 0
        picked: list[int] = []
        room = limits.kv_tokens * (1.0 - _WATERMARK) - self._used()
        taken = self.who.size + len(self.begun)
        while self.queue and taken + len(picked) < limits.max_answers and tokens < budget:
            needed = self._needed(self.queue[0])
            room -= -(-needed // BLOCK) * BLOCK
            if room < 0.0 or (picked and tokens + needed > budget and not limits.chunked):
                break
            tokens += needed
            picked.append(self.queue.popleft())
        return picked

    def _begin(self, picked: Sequence[int]) -> None:
        """Their prompts are through: each has one more token and goes on as an answer."""
        who = np.array(picked)
        context = self.prompt[who] + self.done_tokens[who]
        fresh = self.first[who] < 0
        self.first[who[fresh]] = len(self.segments) - 1
        self.done_tokens[who] += 1
        self.who = np.concatenate((self.who, who))
        self.context = np.concatenate((self.context, context + 1))
        self.left = np.concatenate((self.left, self.output[who] - self.done_tokens[who]))
        self._finish()

    def _chunks(self) -> None:
        """One step in which prompts fill the room that answers leave, or steps of answers alone."""
        while self.who.size and self._steps_that_fit() < 1:
            self._preempt()
        budget = self.limits.step_tokens - self.who.size
        pending = sum(tokens for _, tokens in self.begun)
        for who in self._admit(budget - pending):
            tokens = self._needed(who)
            self.begun.append((who, tokens))
            self.begun_blocks += -(-tokens // BLOCK)
        if not self.begun:
            self._decode()
            return
        batch, context = self.who.size, float(self.context.sum())
        through, tokens = [], 0
        while self.begun and tokens < budget:
            who, left = self.begun.popleft()
            piece = min(left, budget - tokens)
            tokens += piece
            if piece < left:
                self.begun.appendleft((who, left - piece))
            else:
                through.append(who)
                self.begun_blocks -= -(-self._needed(who) // BLOCK)
        self._segment(self.pace.decode(batch, context, tokens), 1, batch, context, tokens)
        self._advance(1)
        if through:
            self._begin(through)

    # ---- answers ----

    def _decode(self) -> None:
        """As many steps as go by before an answer ends, the cache is full or a request arrives."""
        while (steps := self._steps_that_fit()) < 1:
            self._preempt()
        batch, total = self.who.size, float(self.context.sum())
        steps = min(steps, int(self.left.min()))
        if self.next < len(self.at):
            per_step = self.pace.decode(batch, total)
            steps = max(1, min(steps, math.ceil((self.at[self.next] - self.clock_s) / per_step)))
        mean = total + batch * (steps - 1) / 2.0
        self._segment(steps * self.pace.decode(batch, mean), steps, batch, mean, 0.0)
        self._advance(steps)

    def _advance(self, steps: int) -> None:
        self.context += steps
        self.left -= steps
        self.done_tokens[self.who] += steps
        self._finish()

    def _finish(self) -> None:
        over = self.left <= 0
        if over.any():
            self.last[self.who[over]] = len(self.segments) - 1
            keep = ~over
            self.who, self.context, self.left = self.who[keep], self.context[keep], self.left[keep]

    # ---- the cache ----

    def _used(self) -> int:
        """Tokens of KV cache that are taken, in whole blocks."""
        return (int((-(-(self.context + 1) // BLOCK)).sum()) + self.begun_blocks) * BLOCK

    def _steps_that_fit(self) -> int:
        """Steps until the cache is full."""
        free = self.limits.kv_tokens - self._used()
        if free >= BLOCK * self.who.size:
            return free // self.who.size
        # Less than a block for each: count those that need one at each of the next steps.
        at_step = np.bincount((-(self.context + 1)) % BLOCK, minlength=BLOCK)
        needed = np.cumsum(at_step) * BLOCK
        return int(np.searchsorted(needed, free, side="right"))

    def _preempt(self) -> None:
        self.queue.appendleft(int(self.who[-1]))
        self.preemptions += 1
        self.who, self.context, self.left = self.who[:-1], self.context[:-1], self.left[:-1]

    def _segment(self, seconds: float, steps: int, batch: int, context: float, prompt: float) -> None:
        self.segments.append((self.clock_s, seconds, steps, batch, context, prompt))
        self.clock_s += seconds
