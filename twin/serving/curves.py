"""What a whole server does with its model, as curves: seconds and watts by prompt, by token and by batch.

A row's plant (`twin.server`, `twin.bulk`) works with these for all servers at once, as arrays.

- A100: BLOOM-176B on 8 boards, from the public splitwise-sim table (published; medians over its rows are
  ours). Decode watts are the published splitwise constant and do not rise with the batch (in the table by
  4 % from 1 to 16 answers); what a further answer costs in time is our choice.
- H100 and H200: Llama-2-70B on 8 boards, from the fit to recorded H100 runs of smaller models: weights,
  cache and arithmetic shared out over the boards, memory and arithmetic faster by what the vendor states,
  and 25 µs for each of a layer's two exchanges (our choice). Nobody has measured this server here.

A board of no known family is taken for an A100 scaled to its TDP.
"""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np

from schemas.skus import Sku
from schemas.units import FloatArray
from twin.serving.board import ServingFit
from twin.serving.calibration import stored
from twin.serving.llm import LLMS, Llm

PROMPT_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)
_TABLE_PEAK_TDP = (0.691, 0.723, 0.876, 1.007, 1.021, 1.016, 1.026)
_TABLE_MS = (80.0, 99.0, 174.0, 289.0, 540.0, 1348.0, 3593.0)
_TABLE_TOKEN_MS = 49.4  # the table's 47.6 to 51.3, at the prompt lengths of the mix

_EXCHANGE_S = 25e-6
_CONTEXT = 4096.0  # tokens of context per answer that decode is worked out at (our choice)

_FITTED_TB_S = 2.02  # memory of the 64 GB board that was recorded (recalled)
_BOARD_TB_S = {"H100": 3.35, "H200": 4.8}  # the vendor's product pages


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """A server of one kind of board. Prompts longer than the last of `prompt_tokens` count as that long.

    `peak_ratio` is the power while so many prompt tokens are prefilled, as a share of TDP, linear in the
    logarithm of tokens. A token takes `token_s` for an answer by itself, and `batch_cost` more, as a share,
    for each further answer; the board draws `decode_w` then, and `answer_w` more for each further one.
    """

    model: str
    tensor_parallel: int
    prompt_tokens: tuple[float, ...]
    prompt_s: tuple[float, ...]
    peak_ratio: tuple[float, ...]
    token_s: float
    batch_cost: float
    decode_w: float
    answer_w: float
    celsius_per_w: float
    offset_c: float
    """°C over the inlet's at no power."""

    def prefill_seconds(self, prompt: FloatArray) -> FloatArray:
        """Seconds of prefill at full clock for prompts of these lengths."""
        return np.interp(prompt, self.prompt_tokens, self.prompt_s)

    def prompt_peak_ratio(self, tokens: FloatArray) -> FloatArray:
        """Power while this many prompt tokens are prefilled, as a share of TDP."""
        return np.interp(np.log2(np.maximum(tokens, 1.0)), np.log2(self.prompt_tokens), self.peak_ratio)


@cache
def curves_of(sku: Sku) -> Curves:
    """The curves of a server of this board."""
    family = sku.name[:4]
    if family in _BOARD_TB_S:
        return from_fit(
            stored().fit, LLMS["llama-2-70b"], sku, 8, memory_ratio=_BOARD_TB_S[family] / _FITTED_TB_S
        )
    a100 = family == "A100"
    return Curves(
        model="bloom-176b",
        tensor_parallel=8,
        prompt_tokens=PROMPT_TOKENS,
        prompt_s=tuple(ms / 1000.0 for ms in _TABLE_MS),
        peak_ratio=_TABLE_PEAK_TDP,
        token_s=_TABLE_TOKEN_MS / 1000.0,
        batch_cost=0.002,
        decode_w=250.0 if a100 else 0.625 * sku.tdp_w,
        answer_w=0.0,
        celsius_per_w=0.105 if a100 else 42.0 / sku.tdp_w,
        offset_c=0.0,
    )


def from_fit(fit: ServingFit, llm: Llm, sku: Sku, tensor_parallel: int, *, memory_ratio: float) -> Curves:
    """The curves of `tensor_parallel` boards like the fitted one, with memory `memory_ratio` times as fast,
    that serve a model together."""
    pace = fit.law.pace(llm)
    exchanges = 2.0 * llm.layers * _EXCHANGE_S if tensor_parallel > 1 else 0.0
    weights_s = fit.law.weights_byte_s * llm.weight_bytes / tensor_parallel / memory_ratio
    step_s = fit.law.layer_s * llm.layers + weights_s + exchanges
    context_s = pace.context_token_s / tensor_parallel / memory_ratio
    further_s = pace.answer_s + context_s * _CONTEXT
    tokens = np.array(PROMPT_TOKENS, dtype=np.float64)
    prompt_s = step_s + pace.prompt_token_s * tokens / tensor_parallel
    share = 1e-12 / tensor_parallel  # of the work in TB and TFLOP, per board
    weights_w = fit.weights_w_per_tb_s * llm.weight_bytes * share
    prompt_w = (
        fit.base_w + (weights_w + fit.prompt_w_per_tflop_s * llm.token_flops * tokens * share) / prompt_s
    )

    def decode_w(batch: float) -> float:
        cache_w = fit.cache_w_per_tb_s * llm.cache_bytes * _CONTEXT * batch * share
        answers_w = fit.answer_w_per_tflop_s * llm.token_flops * batch * share
        return fit.base_w + (weights_w + cache_w + answers_w) / (step_s + further_s * batch)

    alone_s = step_s + further_s
    return Curves(
        model=llm.name,
        tensor_parallel=tensor_parallel,
        prompt_tokens=PROMPT_TOKENS,
        prompt_s=tuple(prompt_s.tolist()),
        peak_ratio=tuple(np.minimum(prompt_w / sku.tdp_w, 1.0).tolist()),
        token_s=alone_s,
        batch_cost=further_s / alone_s,
        decode_w=decode_w(1.0),
        answer_w=(decode_w(16.0) - decode_w(1.0)) / 15.0,
        celsius_per_w=fit.celsius_per_w,
        offset_c=fit.celsius - _INLET_C,
    )


_INLET_C = 25.0  # what the recorded boards' inlet is taken to be (our choice)
