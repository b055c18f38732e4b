"""What a host does by itself when its own GPUs say that it is beyond its envelope."""

import pathlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.agents import SHARE_MHZ, SHARE_W, T0, TTL, Hosted, brake, kinds, limit, lock, share_of
from support.boards import Wiring, make_host

from actuators.reflex import (
    BELOW_C,
    DWELL_MS,
    GAP_MS,
    MEMORY_MS,
    PATIENCE_MS,
    PERSIST,
    Hold,
    Reflex,
)
from schemas.emergencies import Emergency
from schemas.instants import MINUTE, SECOND, Instant, Span
from schemas.outcomes import Lapsed, Verified
from schemas.samples import GpuFrame
from schemas.units import Reading

HOST = make_host(8)
SLOWDOWN_C = HOST.sku.slowdown_c
HALF_W, HALF_MHZ = 231.0, 960  # of an A100: 63 W at rest, and half of the 337 W above that
LOWEST_W, LOWEST_MHZ = 100.0, 210
PERIOD: Span = 500
HW_THERMAL = 0x40

assert HALF_MHZ < SHARE_MHZ
assert HALF_W < SHARE_W


class Felt:
    """The reflex of one host of eight A100s, and time that passes for it."""

    def __init__(self, held: Hold | None = None) -> None:
        self.now: Instant = T0
        self.said: list[Emergency] = []
        self.reflex = Reflex(HOST, share_of(HOST), source=f"actuator/{HOST.path}", held=held)

    def is_held(self) -> bool:
        return self.reflex.held is not None

    def hold(self) -> Hold:
        assert self.reflex.held is not None
        return self.reflex.held

    def feel(
        self,
        *,
        core_c: tuple[Reading, ...] = (60.0,) * 8,
        power_w: tuple[Reading, ...] = (300.0,) * 8,
        average: bool = False,
        reasons: tuple[int | None, ...] = (),
        after: Span = PERIOD,
    ) -> None:
        """One frame, so long after the one before."""
        self.now += after
        frame = GpuFrame(
            at=self.now, source="test", subject=HOST.path, gpus=tuple(map(str, range(8))), core_c=core_c,
            event_reasons=reasons, power_w=() if average else (power_w,),
            power_average_w=(power_w,) if average else (),
        )  # fmt: skip
        said = self.reflex.step(frame)
        self.said += [said] if said is not None else []

    def hot(self, celsius: Reading = 93.0, gpu: int = 2, **more: Span) -> None:
        core_c: list[Reading] = [60.0] * 8
        core_c[gpu] = celsius
        self.feel(core_c=tuple(core_c), **more)  # type: ignore[arg-type]

    def well_for(self, span: Span) -> None:
        until = self.now + span
        while self.now < until:
            self.feel()


# ---- what raises a hold ----


def test_a_gpu_above_its_slowdown_temperature_has_its_host_at_half_of_its_power() -> None:
    felt = Felt()
    for _ in range(PERSIST - 1):
        felt.hot()
    assert not felt.is_held()
    felt.hot()
    assert felt.is_held()
    assert (felt.hold().max_mhz, felt.hold().limit_w) == (HALF_MHZ, HALF_W)
    (raised,) = felt.said
    assert raised.because == "gpu2 at 93 °C, its slowdown temperature is 89 °C"
    assert (raised.kind, raised.phase, raised.value, raised.limit) == (
        "overtemperature",
        "raised",
        93.0,
        89.0,
    )
    assert raised.source == f"actuator/{HOST.path}"
    assert raised.episode == raised.id == felt.hold().episode


def test_one_reading_that_lies_does_nothing() -> None:
    felt = Felt()
    for _ in range(20):
        felt.hot(120.0)
        felt.hot(120.0, gpu=5)
        felt.feel()
    assert not felt.is_held()
    assert felt.said == []


@pytest.mark.parametrize("celsius", [0.0, -1.0, 255.0, 65_535.0, None])
def test_what_is_no_temperature_is_unknown_and_raises_nothing(celsius: Reading) -> None:
    felt = Felt()
    for _ in range(50):
        felt.hot(celsius)
    assert not felt.is_held()


def test_readings_that_are_unknown_between_hot_ones_do_not_hide_them() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.hot(93.0)
        felt.hot(None)
    assert felt.is_held()


def test_hot_readings_that_are_far_apart_are_not_one_trouble() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.hot(93.0)
        felt.hot(None, after=MEMORY_MS + SECOND)
    assert not felt.is_held()


def test_a_board_that_brakes_itself_for_heat_is_believed_whatever_its_temperature() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.feel(core_c=(84.0,) * 8, reasons=(0, HW_THERMAL, None, 0, 0, 0, 0, 0))
    assert felt.is_held()
    assert felt.said[0].because == "gpu1 brakes itself for heat, at 84 °C"


def test_a_host_above_its_nameplate_holds_itself() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.feel(power_w=(470.0,) * 8)
    (raised,) = felt.said
    assert raised.because == "7060 W by its GPUs' readings, its nameplate is 6500 W"
    assert (raised.kind, raised.value, raised.limit) == ("overload", 7060.0, 6500.0)


def test_boards_at_full_power_whose_sensors_read_five_percent_too_much_raise_nothing() -> None:
    felt = Felt()
    for _ in range(50):
        felt.feel(power_w=(1.05 * HOST.sku.tdp_w,) * 8)
    assert not felt.is_held()


def test_the_average_of_a_second_is_believed_before_the_power_of_a_moment() -> None:
    felt = Felt()
    for _ in range(50):
        felt.feel(power_w=(420.0,) * 8, average=True)
    assert not felt.is_held()


@pytest.mark.parametrize("watts", [4_294_967.0, 0.0, None])
def test_what_is_no_power_of_a_board_is_unknown_and_raises_nothing(watts: Reading) -> None:
    felt = Felt()
    for _ in range(50):
        felt.feel(power_w=(watts, *(300.0,) * 7))
    assert not felt.is_held()


# ---- what it does then ----


def test_a_host_that_half_of_its_power_does_not_cool_goes_to_its_lowest_clock() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.hot()
    for _ in range(PATIENCE_MS // PERIOD - 1):
        felt.hot(91.0)
    assert felt.is_held()
    assert not felt.hold().lowest
    felt.hot(91.0)
    assert felt.hold().lowest
    assert (felt.hold().max_mhz, felt.hold().limit_w) == (LOWEST_MHZ, LOWEST_W)
    raised, escalated = felt.said
    assert (escalated.phase, escalated.episode) == ("escalated", raised.episode)
    assert felt.hold().since == raised.at
    for _ in range(PATIENCE_MS // PERIOD * 3):
        felt.hot(95.0)
    assert len(felt.said) == 2, "there is nothing below the lowest"


def test_a_hold_ends_when_all_has_been_known_and_well_for_the_dwell() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.hot()
    felt.well_for(DWELL_MS - PERIOD)
    assert felt.is_held()
    felt.well_for(PERIOD)
    assert not felt.is_held()
    raised, cleared = felt.said
    assert (cleared.phase, cleared.kind, cleared.episode) == ("cleared", "overtemperature", raised.episode)
    assert cleared.because == "all of its GPUs were known and well for 30 s"


@pytest.mark.parametrize("celsius", [None, SLOWDOWN_C - BELOW_C, SLOWDOWN_C - 0.5])
def test_what_is_unknown_or_close_to_the_limit_does_not_end_a_hold(celsius: Reading) -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.hot()
    for _ in range(20):
        felt.well_for(DWELL_MS - 2 * PERIOD)
        felt.hot(celsius)
    assert felt.is_held()


def test_a_board_of_which_nobody_knows_whether_it_brakes_itself_does_not_end_a_hold() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.feel(reasons=(0, HW_THERMAL, *[0] * 6))
    for _ in range(2 * DWELL_MS // PERIOD):
        felt.feel(reasons=(0, None, *[0] * 6))
    assert felt.is_held(), "its cores are cool, and its memory may not be"
    for _ in range(DWELL_MS // PERIOD):
        felt.feel(reasons=(0,) * 8)
    assert not felt.is_held()


def test_time_without_frames_and_a_clock_that_is_set_do_not_count_as_well() -> None:
    felt = Felt()
    for _ in range(PERSIST):
        felt.hot()
    for _ in range(60):
        felt.feel(after=GAP_MS + 1)
    felt.feel(after=10 * MINUTE)
    felt.feel(after=-10 * MINUTE)
    assert felt.is_held()
    felt.well_for(DWELL_MS)
    assert not felt.is_held()


def test_a_reflex_that_was_restarted_goes_on_holding_until_it_has_seen_that_all_is_well() -> None:
    before = Felt()
    for _ in range(PERSIST):
        before.hot()
    after = Felt(before.hold())
    after.hot(None)
    assert after.hold() == before.hold()
    after.well_for(DWELL_MS)
    assert not after.is_held()
    assert [said.episode for said in after.said] == [before.said[0].episode]


readings = st.sampled_from([None, 0.0, 40.0, 60.0, 83.9, 84.0, 88.9, 89.0, 93.0, 200.0])
powers = st.sampled_from([None, 0.0, 63.0, 300.0, 400.0, 420.0, 470.0, 5_000.0])
frames = st.tuples(
    st.tuples(*[readings] * 8),
    st.tuples(*[powers] * 8),
    st.sampled_from([1, 250, 500, 1_000, 5_000, -60_000]),
)


@given(st.lists(frames, max_size=60))
def test_while_a_hold_stands_it_only_tightens_and_healthy_hosts_are_never_held(
    seen: list[tuple[tuple[Reading, ...], tuple[Reading, ...], Span]],
) -> None:
    felt, before = Felt(), Felt().reflex.held
    trouble = 0
    for core_c, power_w, after in seen:
        felt.feel(core_c=core_c, power_w=power_w, after=after)
        hot = any(core is not None and SLOWDOWN_C <= core < 150 for core in core_c)
        known = sum(watts for watts in power_w if watts is not None and watts < 800)
        trouble += hot or HOST.wall_w(known) > HOST.rated_w
        if before is not None and felt.is_held():
            assert felt.hold().max_mhz <= before.max_mhz
            assert felt.hold().limit_w <= before.limit_w
        if felt.is_held():
            assert trouble >= PERSIST
            assert felt.hold().max_mhz <= SHARE_MHZ
            assert felt.hold().limit_w <= SHARE_W
        if before is not None and felt.reflex.held is None:
            assert None not in core_c + power_w, "it ends on what is known alone"
        before = felt.reflex.held


# ---- what the host's agent makes of it ----

HALF = Hold(
    kind="overtemperature", because="gpu2 at 93 °C, its slowdown temperature is 89 °C", since=T0, episode="e",
    max_mhz=960, limit_w=200.0,
)  # fmt: skip
ALL = msgspec.structs.replace(HALF, max_mhz=210, limit_w=100.0, lowest=True)
WORDS = f"the reflex holds it at or below 960 MHz and 200 W a GPU: {HALF.because}"
MAX_MHZ, MAX_W = 1410, 400.0


def running(*, at: int = MAX_MHZ, state_file: pathlib.Path | None = None) -> Hosted:
    """A host that a command lets run at or below `at`."""
    stand = Hosted("in_band", "brake", state_file=state_file)
    stand.start()
    stand.give(lock(at, stand.now))
    assert set(stand.boards.clocks) == {at}
    return stand


def test_a_host_is_tightened_at_once_and_its_command_is_in_force_as_it_asks_at_or_below() -> None:
    stand = running()
    accepted, verified = stand.hold(HALF)
    assert (set(stand.boards.clocks), set(stand.boards.limits)) == ({960}, {200.0})
    assert isinstance(verified, Verified)
    assert verified.observed == 960
    assert verified.command == stand.said[-1].command != ""
    assert accepted.detail == verified.detail == WORDS


def test_a_host_without_a_lease_is_held_below_its_safe_share() -> None:
    stand = Hosted()
    stand.start()
    (lapsed,) = stand.hold(HALF)
    assert set(stand.boards.clocks) == {960}
    assert isinstance(lapsed, Lapsed)
    assert lapsed.detail == f"{WORDS}; the reflex's share read back, 960 MHz and 200 W a GPU"


def test_nothing_looser_is_taken_while_it_holds_and_the_refusal_says_why() -> None:
    stand = running(at=1110)
    stand.hold(HALF)
    for looser in (lock(MAX_MHZ, stand.now + 1), lock(1125, stand.now + 1), limit(390.0, stand.now + 1)):
        (refused,) = stand.give(looser)
        assert kinds([refused]) == ["Refused"]
        assert WORDS in refused.detail
    assert set(stand.boards.clocks) == {960}


def test_what_tightens_or_renews_is_taken_and_counts_when_it_lets_go() -> None:
    stand = running()
    stand.hold(HALF)
    stand.wait(30 * SECOND)
    (renewed,) = stand.give(lock(MAX_MHZ, stand.now))
    assert (kinds([renewed]), WORDS in renewed.detail) == (["Renewed"], True)
    stand.wait(SECOND)
    cap = lock(1275, stand.now)
    superseded, accepted, verified = stand.give(cap)
    assert kinds([superseded, accepted, verified]) == ["Superseded", "Accepted", "Verified"]
    assert verified.command == cap.id
    assert WORDS in verified.detail
    assert set(stand.boards.clocks) == {960}
    accepted, verified = stand.hold(None)
    assert set(stand.boards.clocks) == {1275}
    assert set(stand.boards.limits) == {MAX_W}
    assert verified.command == cap.id
    assert accepted.detail.startswith("the reflex let go, which held it since 2026-03-01T12:00:00")


def test_a_command_below_the_hold_is_written_and_its_end_leads_back_to_the_hold() -> None:
    stand = running()
    stand.hold(HALF)
    stand.give(lock(810, stand.now + 1, ttl=5 * SECOND))
    assert set(stand.boards.clocks) == {810}
    (lapsed,) = stand.wait(6 * SECOND)
    assert (set(stand.boards.clocks), set(stand.boards.limits)) == ({960}, {200.0})
    assert "the lease ended" in lapsed.detail
    assert "the reflex's share read back" in lapsed.detail


def test_a_lease_that_ends_under_a_hold_ends_in_the_safe_share_when_it_lets_go() -> None:
    stand = running()
    stand.hold(HALF)
    (lapsed,) = stand.wait(TTL + SECOND)
    assert kinds([lapsed]) == ["Lapsed"]
    assert set(stand.boards.clocks) == {960}
    stand.hold(None)
    assert (set(stand.boards.clocks), set(stand.boards.limits)) == ({SHARE_MHZ}, {SHARE_W})


def test_a_brake_pulled_under_a_hold_is_pulled_and_stands_when_it_lets_go() -> None:
    stand = running()
    stand.hold(HALF)
    pulled = brake(stand.now + 1)
    stand.give(pulled)
    (verified,) = stand.wait(6 * SECOND)
    assert verified.command == pulled.id
    assert set(stand.boards.clocks) == {285}
    stand.hold(None)
    stand.wait(SECOND)
    assert set(stand.boards.clocks) == {285}


@pytest.mark.parametrize("wiring", ["own", "shared"])
def test_a_brake_stands_when_it_lets_go_of_a_host_whose_newer_locks_never_landed(wiring: Wiring) -> None:
    stand = Hosted("in_band", "brake", wiring=wiring)
    in_band = stand.intercept("in_band", on="verify")
    stand.start()
    stand.give(brake(stand.now))
    stand.wait(6 * SECOND)
    in_band.failing = True
    stand.give(lock(1275, stand.now, ttl=20 * SECOND))
    in_band.failing = False
    stand.hold(HALF)
    stand.wait(SECOND)
    in_band.failing = True
    stand.give(lock(900, stand.now))
    stand.wait(20 * SECOND)  # the lease of the looser one ends
    in_band.failing = False
    stand.wait(10 * SECOND)
    stand.hold(None)
    stand.wait(10 * SECOND)
    assert set(stand.boards.clocks) == {285}


def test_a_person_s_release_waits_until_it_lets_go() -> None:
    stand = running()
    stand.hold(HALF)
    stand.agent.release_all(stand.now)
    assert set(stand.boards.clocks) == {960}
    (released,) = stand.hold(None)
    assert kinds([released]) == ["Released"]
    assert (set(stand.boards.clocks), set(stand.boards.limits)) == ({MAX_MHZ}, {MAX_W})


def test_its_own_share_is_never_taken_for_what_was_found() -> None:
    stand = running()
    stand.agent.release_all(stand.now)
    for board in stand.boards.gpus:
        board.limit_w["in_band"] = 350.0  # a person, meanwhile
    stand.hold(HALF)
    stand.give(lock(MAX_MHZ, stand.now + 1, on_expiry="restore"))
    stand.hold(None)
    stand.wait(TTL + SECOND)
    assert set(stand.boards.limits) == {350.0}


def test_a_hold_outlives_a_kill_and_ends_as_it_would_have(tmp_path: pathlib.Path) -> None:
    stand = running(state_file=tmp_path / "h01.json")
    stand.hold(ALL)
    for board in stand.boards.gpus:
        board.run_free(MAX_MHZ, MAX_W)  # the driver went down too
    stand.restart(after=SECOND)
    assert (set(stand.boards.clocks), set(stand.boards.limits)) == ({210}, {100.0})
    assert stand.agent.kept is not None
    assert stand.agent.kept.reflex == ALL
    stand.hold(None)
    assert set(stand.boards.clocks) == {MAX_MHZ}, "its lease is alive"


def test_an_agent_that_no_reflex_watches_does_not_go_on_holding(tmp_path: pathlib.Path) -> None:
    stand = running(state_file=tmp_path / "h01.json")
    stand.hold(ALL)
    stand.watched = False
    stand.restart()
    assert set(stand.boards.clocks) == {MAX_MHZ}
    assert stand.agent.kept is not None
    assert stand.agent.kept.reflex is None


def test_a_hold_on_a_host_that_cannot_be_read_is_written_all_the_same() -> None:
    stand = Hosted()
    inspect = stand.intercept("in_band", on="inspect")
    inspect.failing = True
    stand.start()
    assert stand.agent.kept is None
    stand.hold(HALF)
    assert set(stand.boards.clocks) == {960}


def test_a_driver_reload_under_a_hold_is_found_within_seconds() -> None:
    stand = running()
    stand.hold(HALF)
    stand.wait(10 * SECOND)
    stand.boards.reload_driver()
    stand.wait(2 * SECOND)
    assert set(stand.boards.clocks) == {960}
