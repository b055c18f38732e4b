"""What a board draws while it serves."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from support.serving_runs import KNOWN

from schemas.skus import SKUS
from twin.serving.board import ServingFit, power_left, slower
from twin.serving.engine import Course, Requests, serve
from twin.serving.llm import LLMS, UnknownModel, llm_named

LLAMA = LLMS["llama-2-13b"]


def course_of(batch: int, prompt: int = 250, output: int = 200, clock_ratio: float = 1.0) -> Course:
    requests = Requests(np.zeros(batch), np.full(batch, float(prompt)), np.full(batch, float(output)))
    limits = KNOWN.limits(LLAMA, batch, chunked=False)
    return serve(requests, limits, KNOWN.at_clock(KNOWN.model(LLAMA).pace, clock_ratio))


def test_prompts_draw_more_than_answers() -> None:
    course = course_of(batch=32)
    watts = KNOWN.watts(course, LLAMA)
    assert watts[course.whole].min() > watts[~course.whole].max()


def limited(limit_w: float) -> ServingFit:
    return msgspec.structs.replace(KNOWN, limit_w=limit_w)


def test_a_board_draws_its_limit_where_its_work_would_draw_more_and_what_it_draws_where_not() -> None:
    course = course_of(batch=32)
    free, held = (limited(watts).watts(course, LLAMA) for watts in (math.inf, 450.0))
    beyond = free > 450.0
    assert beyond.any(), "without a limit its prompts would draw more"
    assert not beyond.all()
    assert (held[beyond] == 450.0).all(), "a row is sized for boards at their limit, not beyond"
    assert (held[~beyond] == free[~beyond]).all()


def test_a_hungry_board_keeps_to_its_limit_as_well() -> None:
    course = course_of(batch=32)
    free_w = float(KNOWN.watts(course, LLAMA).max())
    board = limited(free_w)  # which the usual board just reaches
    assert limited(math.inf).watts(course, LLAMA, idle_w=126.5).max() > 1.05 * free_w
    assert board.watts(course, LLAMA, idle_w=126.5).max() == free_w, "leakage does not lift a power limit"


def test_a_locked_clock_takes_from_the_limit_where_the_limit_held_the_board_before() -> None:
    locked = course_of(batch=32, clock_ratio=0.8)
    left_w = limited(450.0).watts(locked, LLAMA, clock_ratio=0.8)
    most_w = KNOWN.idle_w + (450.0 - KNOWN.idle_w) * power_left(0.8)
    assert limited(math.inf).watts(locked, LLAMA, clock_ratio=0.8).max() > most_w
    assert left_w.max() == pytest.approx(most_w), (
        "its prompts begin at the limit, not at what they would draw"
    )


def test_a_larger_batch_draws_more_while_it_answers() -> None:
    few, many = course_of(batch=2), course_of(batch=32)
    assert KNOWN.watts(few, LLAMA)[~few.whole].mean() < KNOWN.watts(many, LLAMA)[~many.whole].mean()


def test_a_locked_clock_takes_power_by_the_axis_and_time_by_what_follows_the_clock() -> None:
    free, locked = course_of(batch=8), course_of(batch=8, clock_ratio=0.8)
    above = KNOWN.watts(free, LLAMA) - KNOWN.idle_w
    left = KNOWN.watts(locked, LLAMA, clock_ratio=0.8) - KNOWN.idle_w
    assert left == pytest.approx(above * power_left(0.8), rel=1e-6)
    answering = ~free.whole
    prompts, answers = slower(0.8)
    assert locked.seconds[answering] == pytest.approx(free.seconds[answering] * answers)
    assert locked.seconds[~answering] == pytest.approx(free.seconds[~answering] * prompts)


def test_the_axis_is_the_one_that_safe_shares_are_made_with() -> None:
    sku = SKUS["H100-SXM5-80GB"]
    for mhz in (345, 990, 1605, 1980):
        assert power_left(mhz / sku.max_mhz) == pytest.approx(sku.power_fraction(mhz))


def test_a_board_that_draws_more_at_rest_draws_more_at_work_unless_its_clock_is_locked() -> None:
    course = course_of(batch=8)
    usual, hungry = KNOWN.watts(course, LLAMA), KNOWN.watts(course, LLAMA, idle_w=126.5)
    assert hungry == pytest.approx(usual * 1.1**0.6)
    for other in (0.0, 70.0, 180.0):
        strange = KNOWN.watts(course, LLAMA, idle_w=other)
        assert (strange == usual).all(), "no board differs so much: it rested without a model, or is no H100"
    locked = KNOWN.watts(course, LLAMA, clock_ratio=0.8, idle_w=91.0)
    assert locked == pytest.approx(KNOWN.watts(course, LLAMA, clock_ratio=0.8))


def test_a_model_that_was_never_measured_is_served_as_its_shape_says() -> None:
    unseen = LLMS["llama-3-8b"]
    fit = KNOWN.model(unseen)
    assert fit.pace.decode_s == pytest.approx(8e-5 * 32 + 6e-13 * 2 * 8.03e9)
    assert fit.kv_tokens == int((60e9 - 2 * 8.03e9) / (4 * 32 * 1024))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("/models/Llama-2-7b-hf", "llama-2-7b"),
        ("llama-2-7b", "llama-2-7b"),
        ("meta/llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("facebook/opt-6.7b", "opt-6.7b"),
    ],
)
def test_a_model_is_known_by_the_name_that_recordings_use(name: str, model: str) -> None:
    assert llm_named(name).name == model


def test_a_model_of_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(UnknownModel, match="model 'frob-9b': its shape is not known; known are opt-125m"):
        llm_named("frob-9b")
