"""What serving a language model costs a board: seconds per step, and watts.

A step's seconds and a board's watts are linear in what the step does, with few coefficients, so that they can
be fitted to recorded runs by linear least squares (`twin.serving.fit`) and read by people:

- seconds: weights are read once per step, context once per answer, prompts cost arithmetic
  (`twin.serving.engine.Pace`);
- watts above a busy board's base: so much per TB/s of weights, per TB/s of KV cache, and per TFLOP/s of
  prompts and of answers. What comes out is clamped to the board's power limit.

Where a model was never measured, a `PaceLaw` says its pace from its shape. At a lower clock x = f/fmax,
prompts take 0.9/x + 0.1 and answers 0.15/x + 0.85 as long, and the power above idle falls to
`Sku.power_fraction`; both are synthetic (our derivation), and three recorded runs at x = 0.81 agree with
them within some 3 %.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.units import FloatArray
from twin.clocks.axis import SYNTHETIC, slowdown
from twin.serving.engine import Course, EngineLimits, Pace
from twin.serving.llm import Llm

CHUNK_TOKENS = 512
"""Tokens per step of a chunked engine (vLLM's default of that time)."""

PROMPT_CLOCK_SHARE = 0.9
"""Share of a prompt's time that follows the clock; the rest does not."""

ANSWER_CLOCK_SHARE = 0.15
"""Share of a token's time that follows the clock: reading memory does not."""

_RESTS_APART = 0.15  # the recorded boards rest within 9 % of their median (our choice)

FEATURES = ("prefill_s", "prompt_token_s", "decode_s", "answer_s", "context_token_s", "chunk_token_s")
"""The coefficients of a `Pace`, in the order of the columns of `work`."""


def slower(clock_ratio: float) -> tuple[float, float]:
    """How many times as long prompts and answers take at this share of the highest clock."""
    ratio = np.array(clock_ratio)
    return float(slowdown(ratio, PROMPT_CLOCK_SHARE)), float(slowdown(ratio, ANSWER_CLOCK_SHARE))


def power_left(clock_ratio: float) -> float:
    """The share of the power above idle that is left at this share of the highest clock."""
    return float(SYNTHETIC.power_left(np.array(clock_ratio)))


class PaceLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A model's pace from its shape, on one kind of board: seconds per layer and step, bytes per second of
    weights and of KV cache, operations per second of prompts, whole and in chunks, seconds per answer."""

    layer_s: float
    weights_byte_s: float
    cache_byte_s: float
    prompt_flop_s: float
    chunk_flop_s: float
    answer_s: float

    def pace(self, llm: Llm) -> Pace:
        """The pace of a model on one board."""
        step = self.layer_s * llm.layers + self.weights_byte_s * llm.weight_bytes
        return Pace(
            prefill_s=step,
            prompt_token_s=self.prompt_flop_s * llm.token_flops,
            decode_s=step,
            answer_s=self.answer_s,
            context_token_s=self.cache_byte_s * llm.cache_bytes,
            chunk_token_s=self.chunk_flop_s * llm.token_flops,
        )


class ModelFit(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted for one model on one board."""

    pace: Pace
    kv_tokens: int
    answer_w_per_tflop_s: float


class ServingFit(msgspec.Struct, frozen=True, kw_only=True):
    """A board that serves, as fitted. `memory_bytes` is what weights and KV cache share; `idle_exponent` says
    how much of a board's own idle power, over `idle_w`, shows in its busy power; `noise_ratio` is the
    standard deviation of one second's reading around the model's."""

    sku: str
    limit_w: float
    max_mhz: float
    memory_bytes: float
    idle_w: float
    idle_exponent: float
    noise_ratio: float
    celsius: float
    celsius_per_w: float
    base_w: float
    weights_w_per_tb_s: float
    cache_w_per_tb_s: float
    prompt_w_per_tflop_s: float
    answer_w_per_tflop_s: float
    law: PaceLaw
    models: dict[str, ModelFit]
    prompt_shape: tuple[float, ...]
    output_shape: tuple[float, ...]

    def model(self, llm: Llm) -> ModelFit:
        """A model's own fit, else what its shape says."""
        known = self.models.get(llm.name)
        if known is not None:
            return known
        return ModelFit(
            pace=self.law.pace(llm),
            kv_tokens=int((self.memory_bytes - llm.weight_bytes) / llm.cache_bytes),
            answer_w_per_tflop_s=self.answer_w_per_tflop_s,
        )

    def limits(self, llm: Llm, max_answers: int, *, chunked: bool) -> EngineLimits:
        """The engine of a model on this board."""
        return engine_limits(llm, self.model(llm).kv_tokens, max_answers, chunked=chunked)

    def at_clock(self, pace: Pace, clock_ratio: float) -> Pace:
        """A pace at a share of the highest clock."""
        slow_prompt, slow_answer = slower(clock_ratio)
        return Pace(
            prefill_s=pace.prefill_s * slow_prompt,
            prompt_token_s=pace.prompt_token_s * slow_prompt,
            decode_s=pace.decode_s * slow_answer,
            answer_s=pace.answer_s * slow_answer,
            context_token_s=pace.context_token_s * slow_answer,
            chunk_token_s=pace.chunk_token_s * slow_prompt,
        )

    def watts(
        self, course: Course, llm: Llm, *, clock_ratio: float = 1.0, idle_w: float | None = None
    ) -> FloatArray:
        """Power during each segment of a course (shape (segments,)), of a board that draws `idle_w` at rest.

        The course is one at that clock; its rates are taken back to full clock, where the fit holds. What a
        board with locked clocks draws at rest says nothing of it and is disregarded.
        """
        prompts, answers = slower(clock_ratio)
        full_s = course.seconds / np.where(course.whole, prompts, answers)
        full = rates(course, llm, full_s) @ self.weights_of(llm)
        dynamic = (np.minimum(full, self.limit_w) - self.idle_w) * power_left(clock_ratio)
        gain = self.gain(idle_w) if clock_ratio == 1.0 else 1.0
        return np.minimum((self.idle_w + dynamic) * gain, self.limit_w)

    def weights_of(self, llm: Llm) -> FloatArray:
        """The watts per unit of each column of `rates`."""
        return np.array(
            (
                self.base_w,
                self.weights_w_per_tb_s,
                self.cache_w_per_tb_s,
                self.prompt_w_per_tflop_s,
                self.model(llm).answer_w_per_tflop_s,
            )
        )

    def rests_alike(self, idle_w: float) -> bool:
        """Whether what a board draws at rest is no further from the fitted one's than boards of the kind
        differ. Else it rested in another state (no model in memory), or is another kind of board."""
        return abs(idle_w / self.idle_w - 1.0) <= _RESTS_APART

    def gain(self, idle_w: float | None) -> float:
        """A board's power over the fitted one's, from what it draws at rest; 1 where that is not known, or
        tells nothing of this kind of board."""
        if idle_w is None or not self.rests_alike(idle_w):
            return 1.0
        return math.pow(idle_w / self.idle_w, self.idle_exponent)


def engine_limits(llm: Llm, kv_tokens: int, max_answers: int, *, chunked: bool) -> EngineLimits:
    """The engine of a model with so much KV cache: prompts whole, as many as the model's longest request has
    tokens, or in chunks."""
    return EngineLimits(
        max_answers=max_answers,
        kv_tokens=kv_tokens,
        step_tokens=max(CHUNK_TOKENS, max_answers) if chunked else llm.longest,
        chunked=chunked,
    )


def rates(course: Course, llm: Llm, seconds: FloatArray) -> FloatArray:
    """What each segment does per second, in columns: 1, TB of weights, TB of KV cache, TFLOP of prompts and
    of answers."""
    tera = 1e-12 / seconds
    return np.stack(
        (
            np.ones_like(seconds),
            llm.weight_bytes * course.steps * tera,
            llm.cache_bytes * course.steps * course.context_tokens * tera,
            llm.token_flops * course.prompt_tokens * tera,
            llm.token_flops * course.steps * course.batch * tera,
        ),
        axis=1,
    )


def work(course: Course) -> FloatArray:
    """How often each coefficient of a pace counts in each segment; (segments, 6), columns as `FEATURES`."""
    whole: npt.NDArray[np.bool_] = course.whole
    other = ~whole
    return np.stack(
        (
            np.where(whole, 1.0, 0.0),
            np.where(whole, course.prompt_tokens, 0.0),
            np.where(other, course.steps, 0.0),
            np.where(other, course.steps * course.batch, 0.0),
            np.where(other, course.steps * course.context_tokens, 0.0),
            np.where(other, course.prompt_tokens, 0.0),
        ),
        axis=1,
    )
