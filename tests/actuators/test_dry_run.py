"""A dry run says what it would do, claims nothing, and can reach no device."""

import inspect
import subprocess
import sys

from support.agents import T0, brake, kinds, limit, lock, share_of
from support.boards import make_host
from support.counterparts import PROJECT
from support.nvml_shim import ShimState, installed

from actuators.base import Found
from actuators.dry_run import DryRunActuator
from actuators.lifecycle import HostAgent
from schemas.instants import MINUTE
from schemas.outcomes import Accepted, Refused, Verified

HOST = make_host(8, paths=("in_band", "brake"))


def dry_agent() -> HostAgent:
    paths = HOST.paths
    return HostAgent(
        HOST, {path: DryRunActuator(HOST, path) for path in paths}, share_of(HOST), source="actuator/dry-run"
    )


def test_each_command_is_refused_with_what_it_would_have_done() -> None:
    agent = dry_agent()
    agent.start(T0)
    said = [
        agent.step([command], T0 + n)
        for n, command in enumerate([lock(1275, T0), lock(1410, T0 + 1), limit(300.0, T0 + 2), brake(T0 + 3)])
    ]
    assert [kinds(outcomes) for outcomes in said] == [["Refused"]] * 4
    gpus = "the 8 GPUs of ams1/row-a/r01/h01"
    assert [outcomes[0].detail for outcomes in said] == [
        f"dry run: would lock {gpus} at or below 1275 MHz by in_band",
        f"dry run: would let {gpus} run uncapped by in_band",
        f"dry run: would limit {gpus} to 300 W by in_band",
        f"dry run: would engage the power brake of {gpus} at 288 MHz by brake",
    ]


def test_nothing_it_says_can_be_taken_for_success() -> None:
    agent = dry_agent()
    outcomes = agent.start(T0)
    for at in range(T0, T0 + 10 * MINUTE, 1000):
        outcomes += agent.step([lock(1275, at)] if at % 60_000 == 0 else [], at)
    outcomes += agent.release_all(T0 + 10 * MINUTE)
    assert len(outcomes) == 12
    assert all(isinstance(outcome, Refused) and "dry run: would" in outcome.detail for outcome in outcomes)
    assert not any(isinstance(outcome, Accepted | Verified) for outcome in outcomes)
    seen = DryRunActuator(HOST).verify(lock(1275, T0))
    assert (seen.in_force, seen.observed) == (None, None)
    assert DryRunActuator(HOST).inspect() == Found()


def test_it_takes_no_device_and_no_library() -> None:
    assert set(inspect.signature(DryRunActuator).parameters) == {"host", "path"}


def test_it_works_where_the_driver_library_is_missing_and_does_not_load_it() -> None:
    program = f"""
import sys
sys.modules["pynvml"] = None  # importing it fails from here on
sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
from support.agents import T0, lock, share_of
from support.boards import make_host
from actuators.dry_run import DryRunActuator
from actuators.lifecycle import HostAgent
host = make_host()
agent = HostAgent(host, {{"in_band": DryRunActuator(host)}}, share_of(host), source="actuator/dry-run")
agent.start(T0)
print(agent.step([lock(1275, T0)], T0)[0].detail)
print("NVML is mapped:", "libnvidia-ml" in open("/proc/self/maps").read())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "dry run: would lock the 2 GPUs of ams1/row-a/r01/h01 at or below 1275 MHz by in_band",
        "NVML is mapped: False",
    ]


def test_no_call_reaches_a_driver_that_is_there(nvml_state: ShimState) -> None:
    with installed(nvml_state):
        agent = dry_agent()
        agent.start(T0)
        agent.step([lock(1275, T0)], T0)
        agent.release_all(T0)
        agent.close()
    assert nvml_state.init_calls == 0
    assert nvml_state.writes() == []
