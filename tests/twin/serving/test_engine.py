"""What a continuous-batching engine does with its requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.units import FloatArray
from twin.serving.board import FEATURES, work
from twin.serving.engine import BLOCK, Course, EngineLimits, Pace, Requests, _Replica, serve

PACE = Pace(
    prefill_s=0.02,
    prompt_token_s=5e-5,
    decode_s=0.02,
    answer_s=1e-4,
    context_token_s=4e-7,
    chunk_token_s=2e-5,
)
ROOMY = EngineLimits(max_answers=8, kv_tokens=100_000, step_tokens=4096)


def asked(*lengths: tuple[int, int], at_s: FloatArray | None = None) -> Requests:
    prompt, output = np.array(lengths, dtype=np.float64).T
    return Requests(np.zeros(prompt.size) if at_s is None else at_s, prompt, output)


def served_tokens(course: Course) -> float:
    """Answer tokens: one by each prompt that came through, one by each step of each answer."""
    return float((course.steps * course.batch).sum())


def test_one_request_takes_its_prompt_and_then_a_step_for_each_further_token() -> None:
    course = serve(asked((250, 131)), ROOMY, PACE)
    first, last = course.end_s[course.first[0]], course.end_s[course.last[0]]
    assert first == pytest.approx(PACE.prefill(250))
    steps = sum(PACE.decode(1, 251 + step) for step in range(130))
    assert last - first == pytest.approx(steps)


def test_prompts_that_fit_into_a_step_are_prefilled_together_and_hold_up_the_answers() -> None:
    course = serve(asked((2000, 50), (2000, 50), (2000, 50)), ROOMY, PACE)
    whole = course.whole
    assert course.prompt_tokens[whole].tolist() == [4000.0, 2000.0]
    assert not course.batch[whole].any(), "no answer gets a token while whole prompts are worked off"


def test_a_chunked_engine_goes_on_answering_while_it_works_a_prompt_off() -> None:
    limits = EngineLimits(max_answers=8, kv_tokens=100_000, step_tokens=512, chunked=True)
    course = serve(asked((400, 100), (3000, 50), at_s=np.array([0.0, 0.5])), limits, PACE)
    mixed = (course.prompt_tokens > 0) & (course.batch > 0)
    assert mixed.sum() == 6, "3000 tokens in pieces of 511, beside one answer"
    assert (course.prompt_tokens + course.batch <= 512).all()


def test_no_more_answers_run_at_once_than_allowed() -> None:
    course = serve(asked(*[(100, 60)] * 40), ROOMY, PACE)
    assert course.batch.max() == 8


@pytest.mark.parametrize("chunked", [False, True])
def test_a_full_cache_puts_the_newest_answer_back_and_leaves_the_oldest_to_go_on(chunked: bool) -> None:
    tight = EngineLimits(max_answers=2, kv_tokens=800, step_tokens=4096, chunked=chunked)
    course = serve(asked((300, 400), (200, 300)), tight, PACE)
    assert course.preemptions == 1
    going = slice(course.first[0] + 1, course.last[0] + 1)
    assert course.steps[going].sum() == 399, "the oldest has most to lose: it gets a token at every step"
    assert not course.prompt_tokens[going].any(), "and none of its tokens is prefilled a second time"
    had = 1 + course.steps[course.batch == 2].sum()
    again = course.prompt_tokens[course.last[0] + 1 :].sum()
    assert again == 200 + had, "the newest is prefilled again, its answer so far too, once there is room"


def test_what_was_put_back_is_prefilled_before_what_never_began() -> None:
    tight = EngineLimits(max_answers=2, kv_tokens=800, step_tokens=400)
    course = serve(asked((300, 400), (200, 300), (100, 50)), tight, PACE)
    assert course.preemptions == 1
    prefilled = course.prompt_tokens[course.whole].tolist()
    assert prefilled[:2] == [300.0, 200.0]
    assert prefilled[2] > 200.0, "whoever has begun to read an answer waits for no newcomer"
    assert prefilled[3:] == [100.0]


def test_a_prompt_that_is_half_prefilled_holds_the_cache_that_it_will_fill() -> None:
    limits = EngineLimits(max_answers=8, kv_tokens=2_000, step_tokens=512, chunked=True)
    course = serve(asked((1500, 100), (1500, 100)), limits, PACE)
    assert course.preemptions == 0
    before = course.prompt_tokens[: course.last[0] + 1].sum()
    assert before == 1500, "the cache has no room for the second prompt until the first answer is whole"


def test_a_request_that_can_never_fit_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a request of 5000 tokens does not fit into a KV cache of 4000"):
        serve(asked((4000, 1000)), EngineLimits(max_answers=1, kv_tokens=4_000, step_tokens=4096), PACE)
    with pytest.raises(
        ValueError, match="a request of 3956 tokens"
    ):  # in whole blocks it is more than is given
        serve(asked((3955, 1)), EngineLimits(max_answers=1, kv_tokens=4_000, step_tokens=4096), PACE)
    with pytest.raises(ValueError, match="does not fit into a memory that the weights alone overfill"):
        serve(asked((10, 10)), EngineLimits(max_answers=1, kv_tokens=-3_000, step_tokens=4096), PACE)


def test_an_engine_with_nothing_to_do_waits_for_the_next_request() -> None:
    course = serve(asked((100, 10), (100, 10), at_s=np.array([0.0, 60.0])), ROOMY, PACE)
    assert course.end_s[course.first[1]] == pytest.approx(60.0 + PACE.prefill(100))


lengths = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 300)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 12), st.booleans(), st.sampled_from([1_000, 2_500, 50_000]))
def test_whatever_is_asked_every_answer_gets_its_tokens_within_the_limits(
    lengths: list[tuple[int, int]], answers: int, chunked: bool, kv_tokens: int
) -> None:
    requests = asked(*lengths)
    limits = EngineLimits(max_answers=answers, kv_tokens=kv_tokens, step_tokens=512, chunked=chunked)
    course = serve(requests, limits, PACE)
    assert (course.first >= 0).all()
    assert (course.last >= course.first).all()
    prefilled = course.preemptions + len(lengths)  # each time a prompt comes through it gives a token
    assert served_tokens(course) + prefilled == requests.output.sum()
    assert course.batch.max() <= answers
    assert (course.context_tokens <= kv_tokens).all()
    assert np.allclose(course.start_s[1:], course.end_s[:-1]), "no time is lost and none passes twice"


class Watched(_Replica):
    """An engine that counts what its cache holds, in whole blocks, each time it has taken prompts in: the
    answers' contexts, and all of each prompt that is taken in and not through."""

    most_held = 0

    def _admit(self, budget: int) -> list[int]:
        picked = super()._admit(budget)
        if picked:
            prompts = [self._needed(who) for who in (*(who for who, _ in self.begun), *picked)]
            blocks = sum(-(-tokens // BLOCK) for tokens in [*self.context.tolist(), *prompts])
            self.most_held = max(self.most_held, blocks * BLOCK)
        return picked


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 12), st.booleans(), st.sampled_from([1_000, 2_500]))
def test_no_prompt_is_taken_in_that_the_cache_has_no_room_for(
    lengths: list[tuple[int, int]], answers: int, chunked: bool, kv_tokens: int
) -> None:
    limits = EngineLimits(max_answers=answers, kv_tokens=kv_tokens, step_tokens=512, chunked=chunked)
    engine = Watched(asked(*lengths), limits, PACE)
    engine.run()
    assert 0 < engine.most_held <= kv_tokens, "a board works on no more requests than its memory holds"


@settings(max_examples=20, deadline=None)
@given(lengths, st.booleans())
def test_with_all_requests_there_the_course_does_not_depend_on_the_pace_and_its_seconds_are_linear_in_it(
    lengths: list[tuple[int, int]], chunked: bool
) -> None:
    limits = EngineLimits(max_answers=6, kv_tokens=2_500, step_tokens=512, chunked=chunked)
    other = Pace(**{name: 3.0 * getattr(PACE, name) + 1e-6 for name in FEATURES})
    course, slower = serve(asked(*lengths), limits, PACE), serve(asked(*lengths), limits, other)
    assert (work(course) == work(slower)).all()
    for paced, pace in ((course, PACE), (slower, other)):
        coefficients = np.array([getattr(pace, name) for name in FEATURES])
        assert work(paced) @ coefficients == pytest.approx(paced.seconds)
