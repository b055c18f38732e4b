"""Agents that are killed: run as a program, over the NVML stand-in and the real pynvml.

    python killed_agents.py STATE_DIR FIRST_SEED LAST_SEED

For each seed a host's agent lives one to four lives. Each is a process of its own that takes the host up,
gives it commands and lets time pass, until it is killed (SIGKILL) before a line of the actuators' code
that the seed draws, or, for every eighth seed, by this process at some moment. Then, long after every
lease has run out, one more agent takes the host up. One line of JSON a seed says what became of it.

A child is forked, since an interpreter takes longer to start than it lives here; this is a program of its
own because forking is for processes without threads.
"""

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import msgspec
from support.boards import make_host
from support.nvml_shim import STATE_VARIABLE, ShimState

import actuators
from actuators.gpu_nvml import NvmlActuator
from actuators.lifecycle import HostAgent
from actuators.state_file import Kept
from schemas.commands import Brake, FailDirection, GpuCommand, Lease, LimitPower, LockClocks
from schemas.instants import MINUTE, SECOND, Instant
from schemas.shares import SafeShare

ACTUATORS = str(Path(actuators.__file__).parent)
T0: Instant = 1_772_366_400_000
SHARE_W, SHARE_MHZ = 310.0, 1200
BRAKE_MHZ = 390
LINES = 4000
"""About what a life takes; a kill drawn beyond it finds the agent gone of its own accord."""

Ends = Literal["restore", "safe_share", "hold"]


def agent_of(state: ShimState, state_file: Path) -> HostAgent:
    host = make_host(
        state.gpu_count,
        paths=("in_band", "brake"),
        uuids=tuple(gpu.uuid for gpu in state.gpus),
        sku="H100-SXM5-80GB",
    )
    share = SafeShare(host=host.path, limit_w=SHARE_W, max_mhz=SHARE_MHZ, host_w=host.wall_w(SHARE_W))
    paths = {path: NvmlActuator(host, path) for path in host.paths}
    return HostAgent(host, paths, share, state_file, source="actuator/killed")


def wish(rng: random.Random, at: Instant, ends: Ends) -> GpuCommand:
    """A command, as one direction's controllers would give it."""
    direction: FailDirection = ends
    lease = Lease(epoch=1, issued_at=at, expires_at=at + 90 * SECOND, on_expiry=direction)
    said: dict[str, Any] = {"at": at, "source": "controller", "subject": "ams1/row-a/r01/h01", "lease": lease}
    if ends == "hold":
        return Brake(**said, max_mhz=BRAKE_MHZ)
    if rng.random() < 0.3:
        return LimitPower(**said, limit_w=rng.choice([250.0, 400.0]))
    return LockClocks(**said, max_mhz=rng.choice([900, 1500, 1500, 1980]))


def live(rng: random.Random, state: ShimState, state_file: Path, start: Instant, ends: Ends) -> None:
    """A life: ten wishes or so, and time between them that a lease may not outlast."""
    agent, now = agent_of(state, state_file), start
    agent.start(now)
    for _ in range(rng.randint(4, 12)):
        commands = [wish(rng, now, ends)] if rng.random() < 0.7 else []
        agent.step(commands, now)
        now += rng.choice([250, 250, 2 * SECOND, 20 * SECOND, 100 * SECOND])
    if ends != "hold" and rng.random() < 0.2:
        agent.stand_down(now)


def kill_before_line(number: int) -> None:
    """Kill this process when it comes to its `number`th line of the actuators' code."""
    left = number

    def on_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        return on_line if frame.f_code.co_filename.startswith(ACTUATORS) else None

    sys.settrace(on_call)


def killed(rng: random.Random, seed: int, state: ShimState, file: Path, start: Instant, ends: Ends) -> bool:
    """One life in a process of its own; whether it was killed."""
    at_a_line = seed % 8 != 0
    line = int(LINES ** rng.random()) if rng.random() < 0.5 else rng.randint(1, LINES)
    life = random.Random(rng.random())
    child = os.fork()
    if child == 0:
        try:
            if at_a_line:
                kill_before_line(line)
                live(life, state, file, start, ends)
            while not at_a_line:
                live(life, state, file, start, ends)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if not at_a_line:
        signal.sigtimedwait([], rng.uniform(0.0005, 0.03))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"seed {seed}: a life ended with status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def trial(seed: int, state: ShimState, file: Path) -> dict[str, Any]:
    """Lives, kills, and what is left of them when every lease has long run out."""
    rng = random.Random(seed)
    ends: Ends = rng.choice(["restore", "restore", "safe_share", "safe_share", "hold"])
    found = [rng.randint(500_000, 700_000) for _ in state.gpus]
    for gpu, limit_mw in zip(state.gpus, found, strict=True):
        gpu.limit_mw, gpu.lock_min_mhz, gpu.lock_max_mhz = limit_mw, 0, 0
    for left in file.parent.iterdir():
        left.unlink()
    start, kills = T0, 0
    for _ in range(rng.randint(1, 4)):
        kills += killed(rng, seed, state, file, start, ends)
        start += rng.choice([SECOND, 60 * MINUTE])
    untouched = [gpu.limit_mw for gpu in state.gpus] == found and not any(gpu.locked for gpu in state.gpus)
    kept = msgspec.json.decode(file.read_bytes(), type=Kept) if file.exists() else None
    problems = []
    if kept is None and not untouched:
        problems.append("the device was written before the state file")
    if kept is not None and kept.found.limit_w != tuple(limit_mw / 1000 for limit_mw in found):
        problems.append(f"took {kept.found} for what was found")

    start += 24 * 60 * MINUTE
    agent = agent_of(state, file)
    outcomes = agent.start(start)
    for _ in range(8):
        start += SECOND
        outcomes += agent.step((), start)
    limits, locks = [gpu.limit_mw for gpu in state.gpus], [gpu.lock_max_mhz for gpu in state.gpus]
    obeyed = kept is not None and kept.command is not None
    if ends == "restore" and obeyed:
        if limits != found or any(locks):
            problems.append(f"after the leases: limits {limits} and locks {locks}, found with {found}")
    elif ends == "hold" and obeyed:
        if set(locks) != {BRAKE_MHZ}:
            problems.append(f"the brake is held at {locks}")
    elif set(limits) != {round(SHARE_W * 1000)} or set(locks) != {SHARE_MHZ}:
        problems.append(f"not at the safe share: limits {limits} and locks {locks}")
    agent.release_all(start)
    limits, locks = [gpu.limit_mw for gpu in state.gpus], [gpu.lock_max_mhz for gpu in state.gpus]
    if limits != found or any(locks):
        problems.append(f"given back limits {limits} and locks {locks}, found with {found}")
    agent.close()
    return {"seed": seed, "ends": ends, "kills": kills, "obeyed": obeyed, "problems": problems}


def main() -> None:
    state = ShimState.opened(Path(os.environ[STATE_VARIABLE]))
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for seed in range(first, last):
        print(json.dumps(trial(seed, state, folder / "h01.json")), flush=True)


if __name__ == "__main__":
    main()
