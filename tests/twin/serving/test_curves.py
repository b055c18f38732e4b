"""What whole servers do with their models."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support.serving_runs import KNOWN

from schemas.skus import SKUS
from twin.serving.curves import PROMPT_TOKENS, curves_of, from_fit
from twin.serving.llm import LLMS

H100, H200 = SKUS["H100-SXM5-80GB"], SKUS["H200-SXM5-141GB"]
LLAMA = LLMS["llama-2-13b"]


def test_every_board_that_ships_peaks_at_prompts_and_stays_within_its_limit() -> None:
    for sku in SKUS.values():
        curves = curves_of(sku)
        assert list(curves.prompt_s) == sorted(curves.prompt_s)
        assert curves.decode_w > sku.idle_w
        assert max(curves.peak_ratio) * sku.tdp_w > curves.decode_w
        assert max(curves.peak_ratio) < 1.03, "the published table goes to 1.026 of TDP"


def test_decode_on_h200_draws_what_was_published() -> None:
    curves = curves_of(H200)
    assert 137.0 <= curves.decode_w <= 300.0  # measured on a 700 W board (published)


def test_faster_memory_shortens_the_token_and_not_the_arithmetic_of_prompts() -> None:
    slow, fast = curves_of(H100), curves_of(H200)
    assert fast.token_s < slow.token_s
    further = np.diff(slow.prompt_s)
    assert np.diff(fast.prompt_s) == pytest.approx(further)


def test_one_board_of_the_kind_that_was_fitted_does_what_the_fit_says() -> None:
    curves = from_fit(KNOWN, LLAMA, H100, 1, memory_ratio=1.0)
    pace = KNOWN.law.pace(LLAMA)
    assert curves.prompt_s[0] == pytest.approx(pace.prefill(PROMPT_TOKENS[0]))
    assert curves.token_s == pytest.approx(pace.decode(1, 4096))
    assert curves.token_s * (1 + 7 * curves.batch_cost) == pytest.approx(pace.decode(8, 8 * 4096))


def test_more_boards_share_the_work_and_pay_for_their_exchanges() -> None:
    one, two, eight = (from_fit(KNOWN, LLAMA, H100, boards, memory_ratio=1.0) for boards in (1, 2, 8))
    assert eight.prompt_s[-1] < two.prompt_s[-1] < one.prompt_s[-1]
    assert eight.prompt_s[-1] > one.prompt_s[-1] / 8, "what a layer and an exchange take is not shared"
    assert eight.decode_w < one.decode_w


def test_an_unknown_board_is_an_a100_scaled_to_its_limit() -> None:
    odd = msgspec.structs.replace(SKUS["A100-SXM4-80GB"], name="B300", tdp_w=1200.0)
    curves = curves_of(odd)
    assert curves.decode_w == pytest.approx(750.0)
    assert curves.prompt_s == curves_of(SKUS["A100-SXM4-80GB"]).prompt_s
