"""A driver that hangs costs its own host an answer, and others nothing."""

import threading
from collections.abc import Iterator

import pytest
from support.agents import SHARE_MHZ, T0, TTL, Hosted, kinds, lock, share_of
from support.boards import make_host
from support.nvml_shim import ShimState, installed

from actuators.base import ActuatorError
from actuators.deadline import Bounded
from actuators.gpu_nvml import NvmlActuator
from actuators.lifecycle import HostAgent
from schemas.commands import GpuCommand
from schemas.instants import SECOND
from schemas.outcomes import Failed

LIMIT_S = 0.1


class Gated:
    """Holds each `apply` at a gate that the test opens."""

    def __init__(self, actuator: NvmlActuator) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.came_back = threading.Event()
        for name in ("inspect", "verify", "fall_back", "release", "close"):
            setattr(self, name, getattr(actuator, name))
        self.path = actuator.path
        self._actuator = actuator

    def apply(self, command: GpuCommand, found: object) -> None:
        self.gate.wait()
        self._actuator.apply(command, found)  # type: ignore[arg-type]
        self.came_back.set()


@pytest.fixture
def stand() -> Iterator[Hosted]:
    stand = Hosted()
    gated = Gated(stand.actuators["in_band"])  # type: ignore[arg-type]
    bounded = Bounded(gated, LIMIT_S)  # type: ignore[arg-type]
    stand.actuators["in_band"] = bounded
    stand.gated = gated  # type: ignore[attr-defined]
    yield stand
    gated.gate.set()
    bounded.close()


def test_calls_that_come_back_give_what_the_device_gave(stand: Hosted) -> None:
    stand.start()
    assert kinds(stand.give(lock(1275, stand.now))) == ["Accepted", "Verified"]
    assert set(stand.boards.clocks) == {1275}
    assert kinds(stand.wait(TTL + SECOND)) == ["Lapsed"]


def test_errors_of_the_device_pass_through(stand: Hosted) -> None:
    for board in stand.boards.gpus:
        board.denied = True
    with pytest.raises(ActuatorError, match="needs root") as raised:
        stand.actuators["in_band"].fall_back(stand.share, stand.actuators["in_band"].inspect())
    assert raised.value.lasting


def test_a_command_that_hangs_in_the_driver_fails_and_the_lease_still_ends_in_the_safe_share(
    stand: Hosted,
) -> None:
    gated: Gated = stand.gated  # type: ignore[attr-defined]
    stand.start()
    stand.give(lock(1410, stand.now))
    gated.gate.clear()
    command = lock(1005, stand.now + 1)
    assert kinds(stand.give(command)) == ["Superseded"]  # and it came back at all
    (failed,) = stand.wait(4 * SECOND)
    assert isinstance(failed, Failed)
    assert "the device has not come back from apply" in failed.detail
    outcomes = stand.wait(TTL)
    assert kinds(outcomes) == ["Failed"]
    assert "the safe share is not in force and is tried on" in outcomes[0].detail
    gated.gate.set()
    assert gated.came_back.wait(10)
    # The late write has landed; the agent is still at it.
    while not (lapsed := stand.wait(2 * SECOND)):
        pass
    assert kinds(lapsed) == ["Lapsed"]
    assert set(stand.boards.clocks) == {SHARE_MHZ}


def test_a_hung_host_costs_the_one_beside_it_no_more_than_the_limit(stand: Hosted) -> None:
    gated: Gated = stand.gated  # type: ignore[attr-defined]
    stand.start()
    gated.gate.clear()
    stand.give(lock(1005, stand.now))
    beside = Hosted()
    beside.start()
    assert kinds(beside.give(lock(1275, beside.now))) == ["Accepted", "Verified"]
    actuator = stand.actuators["in_band"]
    with pytest.raises(ActuatorError, match="has not come back from apply: verify was not tried"):
        actuator.verify(lock(1005, T0))  # at once: it does not queue behind the one that hangs


def test_a_call_that_hangs_in_the_driver_library_is_given_up(nvml_state: ShimState) -> None:
    with installed(nvml_state):
        host = make_host(2, sku="H100-SXM5-80GB")
        bounded = Bounded(NvmlActuator(host, "in_band"), LIMIT_S)
        agent = HostAgent(
            host, {"in_band": bounded}, share_of(host, limit_w=300.0, max_mhz=1200), source="actuator/test"
        )
        agent.start(T0)
        nvml_state.hang("nvmlDeviceSetGpuLockedClocks", -1, times=1, gpu=1)
        agent.step([lock(1500, T0)], T0)
        assert "has not come back from apply" in agent.step((), T0 + 4 * SECOND)[0].detail
        nvml_state.clear_faults()  # the driver wakes
        at = T0 + 4 * SECOND
        while kinds(agent.step((), at)) != ["Lapsed"]:
            at += SECOND
        assert [gpu.lock_max_mhz for gpu in nvml_state.gpus] == [1200, 1200]
        bounded.close()
