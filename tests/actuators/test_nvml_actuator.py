"""The NVML actuator through the real pynvml, over the stand-in driver library."""

from types import ModuleType
from typing import cast

import msgspec
import pytest
from support.agents import limit, lock, share_of
from support.boards import make_host
from support.nvml_fixtures import MakeNvmlState
from support.nvml_shim import (
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    ShimState,
    installed,
)

from actuators.base import ActuatorError, Found, NotAttempted
from actuators.gpu_nvml import Nvml, NvmlActuator
from schemas.commands import Brake
from schemas.instants import Instant
from schemas.topology import Host

H100 = "H100-SXM5-80GB"
T0: Instant = 1_772_366_400_000
MAX_MHZ = 1980


def h100(state: ShimState) -> Host:
    return make_host(state.gpu_count, uuids=tuple(gpu.uuid for gpu in state.gpus), sku=H100)


@pytest.fixture
def actuator(nvml: ModuleType, nvml_state: ShimState) -> NvmlActuator:
    return NvmlActuator(h100(nvml_state), "in_band")


def locks(state: ShimState) -> list[tuple[int, int]]:
    return [(gpu.lock_min_mhz, gpu.lock_max_mhz) for gpu in state.gpus]


def limits(state: ShimState) -> list[int]:
    return [gpu.limit_mw for gpu in state.gpus]


def test_it_locks_every_gpu_to_a_clock_of_the_boards_grid(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    found = actuator.inspect()
    actuator.apply(lock(1559, T0), found)
    assert locks(nvml_state) == [(345, 1545)] * 2  # 345 + 80 x 15
    seen = actuator.verify(lock(1559, T0))
    assert (seen.in_force, seen.observed) == (True, 1545)
    assert seen.power_w == sum(gpu.expected_mw() for gpu in nvml_state.gpus) / 1000


def test_a_pinned_lock_holds_idle_clocks_up(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    actuator.apply(msgspec.structs.replace(lock(1545, T0), min_mhz=1545), actuator.inspect())
    assert locks(nvml_state) == [(1545, 1545)] * 2


def test_the_highest_clock_is_no_lock_at_all(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    found = actuator.inspect()
    actuator.apply(lock(1200, T0), found)
    actuator.apply(lock(MAX_MHZ, T0), found)
    assert locks(nvml_state) == [(0, 0)] * 2
    assert actuator.verify(lock(MAX_MHZ, T0)).in_force is True


def test_a_standing_lock_is_never_passed_and_is_what_a_release_gives_back(
    nvml: ModuleType, nvml_state: ShimState
) -> None:
    actuator = NvmlActuator(h100(nvml_state), "in_band", standing_lock_mhz=1695)
    found = actuator.inspect()
    assert found.lock_mhz == 1695
    for command in (lock(MAX_MHZ, T0), lock(1800, T0), limit(500.0, T0)):
        actuator.apply(lock(1200, T0), found)
        actuator.apply(command, found)
        assert locks(nvml_state) == [(345, 1695)] * 2
    actuator.apply(lock(1200, T0), found)
    actuator.release(found)
    assert locks(nvml_state) == [(345, 1695)] * 2


def test_found_is_given_back_to_the_milliwatt_on_the_gpu_it_was_found_on(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.gpu(0).limit_mw, nvml_state.gpu(1).limit_mw = 650_001, 523_456
    found = actuator.inspect()
    actuator.fall_back(share_of(h100(nvml_state), limit_w=300.0, max_mhz=1200), found)
    assert limits(nvml_state) == [300_000] * 2
    assert locks(nvml_state) == [(345, 1200)] * 2
    actuator.release(found)
    assert limits(nvml_state) == [650_001, 523_456]
    assert locks(nvml_state) == [(0, 0)] * 2


def test_gpus_of_which_nothing_is_known_are_given_their_default(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.gpu(0).limit_mw = nvml_state.gpu(1).limit_mw = 300_000
    actuator.release(Found(uuids=(nvml_state.gpu(0).uuid,), limit_w=(450.0,)))
    assert limits(nvml_state) == [450_000, 700_000]


def test_the_limit_is_lifted_only_on_gpus_whose_lock_was_written(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    found = actuator.inspect()
    actuator.fall_back(share_of(h100(nvml_state), limit_w=300.0, max_mhz=1200), found)
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", UNKNOWN, gpu=0)
    with pytest.raises(ActuatorError, match=r"gpu0 .*Unknown Error") as raised:
        actuator.apply(lock(1500, T0), found)
    assert not raised.value.lasting
    assert "gpu1" not in str(raised.value)
    assert locks(nvml_state) == [(345, 1200), (345, 1500)]
    assert limits(nvml_state) == [300_000, 700_000]


def test_a_release_goes_on_when_one_control_fails(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    found = actuator.inspect()
    actuator.apply(lock(1200, T0), found)
    nvml_state.fail("nvmlDeviceSetPowerManagementLimit", UNKNOWN, gpu=0)
    with pytest.raises(ActuatorError, match="gpu0"):
        actuator.release(found)
    assert locks(nvml_state) == [(0, 0)] * 2


def test_a_power_limit_is_read_back_as_enforced(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    found = actuator.inspect()
    actuator.apply(limit(400.0, T0), found)
    assert limits(nvml_state) == [400_000] * 2
    seen = actuator.verify(limit(400.0, T0))
    assert (seen.in_force, seen.observed) == (True, 400.0)
    nvml_state.gpu(1).limit_mw = 700_000
    seen = actuator.verify(limit(400.0, T0))
    assert (seen.in_force, seen.observed) == (False, 700.0)
    assert "reads 700 W" in seen.detail


@pytest.mark.parametrize("limit_w", [199.9, 700.1])
def test_a_limit_out_of_the_boards_range_is_refused_before_any_write(
    actuator: NvmlActuator, nvml_state: ShimState, limit_w: float
) -> None:
    with pytest.raises(NotAttempted, match=f"takes power limits from 200 to 700 W, not {limit_w} W"):
        actuator.apply(limit(limit_w, T0), actuator.inspect())
    assert nvml_state.writes() == []


def test_a_write_that_claims_success_and_does_nothing_is_found_out(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", 0, gpu=1)
    actuator.apply(lock(1200, T0), actuator.inspect())
    seen = actuator.verify(lock(1200, T0))
    assert seen.in_force is False
    assert f"gpu1 ({nvml_state.gpu(1).uuid}) reads 1980 MHz" in seen.detail


def test_a_gpu_that_cannot_be_read_leaves_the_setting_unknown(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    actuator.apply(lock(1200, T0), actuator.inspect())
    nvml_state.lose(1)
    seen = actuator.verify(lock(1200, T0))
    assert seen.in_force is None
    assert seen.power_w is None  # of the host; half of it is not the host's
    assert "gpu1" in seen.detail
    assert "GPU is lost" in seen.detail
    nvml_state.gpu(0).lock_max_mhz = 0
    assert actuator.verify(lock(1200, T0)).in_force is False  # one that is over is enough to know


def test_a_gpu_that_was_lost_is_set_when_it_is_back(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    found = actuator.inspect()
    nvml_state.lose(1)
    with pytest.raises(ActuatorError, match="GPU is lost") as raised:
        actuator.apply(lock(1200, T0), found)
    assert not raised.value.lasting
    assert locks(nvml_state) == [(345, 1200), (0, 0)]
    nvml_state.find(1)
    actuator.apply(lock(1200, T0), found)
    assert locks(nvml_state) == [(345, 1200)] * 2


def test_when_no_gpu_answers_it_says_so_and_a_retry_may_help(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.lose(0)
    nvml_state.lose(1)
    for call in (actuator.inspect, lambda: actuator.verify(lock(1200, T0))):
        with pytest.raises(ActuatorError, match="no GPU could be read") as raised:
            call()
        assert not raised.value.lasting


def test_writing_without_permission_is_lasting_and_says_what_to_do(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.deny()
    with pytest.raises(ActuatorError) as raised:
        actuator.apply(lock(1200, T0), actuator.inspect())
    assert raised.value.lasting
    assert (
        "Insufficient Permissions: needs root: run the actuator unit as root or grant CAP_SYS_ADMIN"
        in str(raised.value)
    )


def test_one_gpu_without_permission_among_others_in_passing_trouble_is_worth_a_retry(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", NO_PERMISSION, gpu=0)
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", UNKNOWN, gpu=1)
    with pytest.raises(ActuatorError, match=r"gpu0.*gpu1") as raised:
        actuator.apply(lock(1200, T0), actuator.inspect())
    assert not raised.value.lasting


def test_what_the_board_does_not_offer_is_lasting(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    nvml_state.fail("nvmlDeviceSetGpuLockedClocks", NOT_SUPPORTED)
    with pytest.raises(ActuatorError, match="Not Supported") as raised:
        actuator.apply(lock(1200, T0), actuator.inspect())
    assert raised.value.lasting


def test_another_gpu_in_the_place_of_a_stated_one_is_named_with_it_and_nothing_is_written(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    stated = nvml_state.gpu(1).uuid
    nvml_state.gpu(1).uuid = "GPU-of-another-host"
    found = actuator.inspect()
    assert found.uuids == (nvml_state.gpu(0).uuid,)
    with pytest.raises(NotAttempted, match=f"gpu1: the site file states {stated}, .* GPU-of-another-host"):
        actuator.apply(lock(1200, T0), found)
    assert nvml_state.writes() == []
    share = share_of(h100(nvml_state), limit_w=300.0, max_mhz=1200)
    with pytest.raises(ActuatorError, match="GPU-of-another-host"):
        actuator.fall_back(share, found)
    assert locks(nvml_state) == [(345, 1200), (0, 0)]  # ours is safe, the stranger untouched


def test_a_brake_engages_beside_another_gpu_in_the_place_of_a_stated_one_and_is_not_said_to_be_in_force(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    nvml_state.gpu(1).uuid = "GPU-of-another-host"
    plain = lock(1200, T0)
    braked = Brake(at=T0, source="x", subject=plain.subject, lease=plain.lease, max_mhz=404)
    with pytest.raises(ActuatorError, match=r"not every GPU did engage the brake.*GPU-of-another") as why:
        actuator.apply(braked, actuator.inspect())
    assert not isinstance(why.value, NotAttempted)
    ours, stranger = locks(nvml_state)
    assert ours[1] <= braked.max_mhz
    assert stranger == (0, 0)
    nvml_state.gpu(0).sm_mhz = braked.max_mhz
    assert actuator.verify(braked).in_force is None


def test_a_gpu_that_moved_to_another_index_is_still_known(
    actuator: NvmlActuator, nvml_state: ShimState
) -> None:
    first, second = nvml_state.gpus
    first.uuid, second.uuid = second.uuid, first.uuid
    first.limit_mw, second.limit_mw = 500_000, 600_000
    found = actuator.inspect()
    assert dict(zip(found.uuids, found.limit_w, strict=True)) == {first.uuid: 500.0, second.uuid: 600.0}


def test_hosts_without_stated_uuids_are_held_by_index(nvml: ModuleType, nvml_state: ShimState) -> None:
    actuator = NvmlActuator(make_host(2, sku=H100), "in_band")
    found = actuator.inspect()
    assert found.uuids == tuple(gpu.uuid for gpu in nvml_state.gpus)
    actuator.apply(lock(1200, T0), found)
    assert locks(nvml_state) == [(345, 1200)] * 2


def test_a_brake_only_tightens(actuator: NvmlActuator, nvml_state: ShimState) -> None:
    found = actuator.inspect()
    actuator.fall_back(share_of(h100(nvml_state), limit_w=300.0, max_mhz=1200), found)
    command = lock(1200, T0)
    actuator.apply(Brake(at=T0, source="x", subject=command.subject, lease=command.lease, max_mhz=404), found)
    assert locks(nvml_state) == [(345, 390)] * 2
    assert limits(nvml_state) == [300_000] * 2


def test_a_driver_that_is_not_loaded_is_an_error_in_words(make_nvml_state: MakeNvmlState) -> None:
    state = make_nvml_state(gpus=1)
    with installed(state):
        actuator = NvmlActuator(h100(state), "in_band")
        state.fail("nvmlInit", 9)
        with pytest.raises(
            ActuatorError, match=r"no NVIDIA driver answers: ams1/.*: Driver Not Loaded"
        ) as raised:
            actuator.inspect()
        assert not raised.value.lasting  # it may be loaded yet
        state.clear_faults()
        assert actuator.inspect().uuids == (state.gpu(0).uuid,)


def test_an_old_driver_without_clock_locks_is_lasting(make_nvml_state: MakeNvmlState) -> None:
    state = make_nvml_state(gpus=1)
    with installed(state, omit=["nvmlDeviceSetGpuLockedClocks"]):
        actuator = NvmlActuator(h100(state), "in_band")
        with pytest.raises(ActuatorError, match="Function Not Found") as raised:
            actuator.apply(lock(1200, T0), actuator.inspect())
        assert raised.value.lasting


def test_closing_changes_no_setting_and_lets_the_library_go(
    actuator: NvmlActuator, nvml: ModuleType, nvml_state: ShimState
) -> None:
    actuator.apply(lock(1200, T0), actuator.inspect())
    actuator.close()
    actuator.close()
    assert locks(nvml_state) == [(345, 1200)] * 2
    nvml.nvmlShutdown()  # the fixture's; the actuator's own was given back
    with pytest.raises(nvml.NVMLError, match="Uninitialized"):
        nvml.nvmlShutdown()


def test_pynvml_has_every_call_that_the_actuator_makes(nvml: ModuleType) -> None:
    calls = [name for name in vars(Nvml) if name.startswith("nvml")]
    assert len(calls) == 14
    assert [name for name in calls if not callable(getattr(cast(Nvml, nvml), name, None))] == []
