"""`windrow run` on a machine whose driver is the stand-in: real processes, real NVML calls, real signals."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.machines import (
    CALM_MW,
    HOST,
    LOW_T1_MHZ,
    OVER_T1_MW,
    SAFE_MHZ,
    SAFE_W,
    UNCAPPED_MHZ,
    WINDROW,
    Machine,
    eventually,
)
from support.nvml_shim import environment, installed

from runtime.cli.app import run
from runtime.ledger.store import Ledger
from schemas.commands import LockClocks
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import Event
from schemas.operators import Pin, ReleaseAll
from schemas.outcomes import Accepted, Failed, Lapsed, Outcome, Refused, Released, Verified

DRIVER_NOT_LOADED = 9

pytestmark = pytest.mark.usefixtures("nvml_library")


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Iterator[Machine]:
    """An oversubscribed row of one server with two H100s, calm."""
    made = Machine(tmp_path)
    yield made
    made.close()


def recorded(machine: Machine, *kinds: type[Event]) -> list[Event]:
    """What the machine's ledger holds of some types, in order."""
    with Ledger.reading(machine.ledger) as ledger:
        return list(ledger.of_type(kinds))


def test_a_rising_load_is_capped_and_the_ledger_says_why(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.start()
    eventually(lambda: "Verified" in kinds(machine), "the host is allowed to run above its safe share")
    assert machine.locks == [0, 0], "an uncapped host has no lock"

    machine.want(OVER_T1_MW)
    eventually(lambda: machine.locks == [LOW_T1_MHZ] * 2, "the row is above T1 and its boards are capped")
    eventually(lambda: verified(machine, LOW_T1_MHZ) is not None, "the cap is read back")
    cap = verified(machine, LOW_T1_MHZ)
    assert cap is not None

    assert run(["audit", "why", cap.id, "--ledger", str(machine.ledger)]) == 0
    told = capsys.readouterr().out
    assert f"{HOST}: hold SM clocks at or below {LOW_T1_MHZ} MHz (in band)" in told
    assert "above T1 0.800" in told
    assert "over 2 GPUs" in told
    assert "verified, read back 1785, its GPUs -1" in told  # 170 W or so less

    assert machine.stop() == 0
    assert machine.at_safe_share, "without a host the row is held at what it carries for ever"
    (lapsed,) = [event for event in recorded(machine, Lapsed) if event.at > cap.at]
    assert isinstance(lapsed, Lapsed)
    assert lapsed.detail == f"the agent stands down; safe share read back, {SAFE_MHZ} MHz and 625 W a GPU"
    assert run(["audit", "verify", "--ledger", str(machine.ledger)]) == 0


def kinds(machine: Machine) -> set[str]:
    """The types that the ledger holds."""
    return {type(event).__name__ for event in recorded(machine, Verified, Lapsed, Refused, Pin, ReleaseAll)}


def verified(machine: Machine, mhz: int) -> LockClocks | None:
    """A lock at `mhz` that was read back."""
    with Ledger.reading(machine.ledger) as ledger:
        for outcome in ledger.of_type([Verified]):
            assert isinstance(outcome, Verified)
            command = ledger.get(outcome.command)
            if isinstance(command, LockClocks) and command.max_mhz == mhz:
                return command
    return None


def test_a_running_host_serves_its_health_and_metrics_and_hears_its_operators(machine: Machine) -> None:
    machine.start()
    eventually(lambda: (machine.ready() or {}).get("ready") is True, "every sign of life is there")
    assert set((machine.ready() or {})["signs"]) == {
        "beat lab/row-a", "samples lab/row-a", "lease timer", "ledger",
    }  # fmt: skip
    metrics = machine.get("/metrics").decode()
    assert 'windrow_config_info{epoch="1",policy="polca",site="lab"} 1.0' in metrics
    assert 'windrow_row_budget_watts{row="lab/row-a"} 2400.0' in metrics
    (power,) = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith('windrow_row_power_watts{row="lab/row-a"}')
    ]
    assert 1_300 < power < 1_450  # 2 x 300 W, and 550 to 1150 W for the rest of the server

    state = ["--state-dir", str(machine.state_dir)]
    assert run(["pin", HOST, "--max-mhz", "1500", "--minutes", "5", "--reason", "hot aisle", *state]) == 0
    eventually(lambda: machine.locks == [1500, 1500], "the pin holds")
    eventually(lambda: "Pin" in kinds(machine), "the pin is on record")
    inbox = machine.state_dir / "inbox"
    eventually(lambda: not list(inbox.glob("*.json")), "what was said and recorded is cleared away")

    assert run(["release", "--all", "--reason", "maintenance", *state]) == 0
    eventually(lambda: machine.at_safe_share, "in an oversubscribed row what is given back is the safe share")
    assert run(["release", "--all", "--reason", "faster", "--uncapped", "--yes", *state]) == 2
    assert machine.at_safe_share
    eventually(lambda: "ReleaseAll" in kinds(machine), "the release is on record")

    assert run(["run", "--config", str(machine.config)]) == 2, "two hosts never run on one state"
    assert machine.stop(signal.SIGINT) == 0


def test_a_host_that_was_killed_goes_on_with_its_lease_and_knows_what_it_found(machine: Machine) -> None:
    machine.want(OVER_T1_MW)
    machine.start()
    eventually(lambda: machine.locks == [LOW_T1_MHZ] * 2, "the row is capped")
    machine.stop(signal.SIGKILL)
    assert machine.locks == [LOW_T1_MHZ] * 2, "a killed host leaves its setting on the boards"

    machine.start()
    assert 'epoch="2"' in machine.get("/metrics").decode(), "a restart fences what came before it"
    eventually(lambda: "taken up again after a restart" in details(machine, Accepted), "its lease is alive")
    assert machine.stop() == 0
    assert machine.at_safe_share

    with installed(machine.state):
        state = ["--state-dir", str(machine.state_dir)]
        assert run(["release", "--all", "--reason", "empty", "--uncapped", "--yes", *state]) == 0
    assert machine.locks == [0, 0]
    assert machine.limits == [700.0, 700.0], "never its own cap for what it found"


def details(machine: Machine, *kinds: type[Outcome]) -> set[str]:
    """What the outcomes of some types say."""
    return {event.detail for event in recorded(machine, *kinds) if isinstance(event, Outcome)}


def late(machine: Machine) -> bool:
    """Whether a sign of life is missing."""
    return (machine.ready() or {}).get("ready") is not True


def test_a_dry_run_decides_records_and_sets_nothing(machine: Machine) -> None:
    machine.want(OVER_T1_MW)
    machine.start("--dry-run")
    would = f"dry run: would lock the 2 GPUs of {HOST} at or below {LOW_T1_MHZ} MHz by in_band"
    eventually(lambda: would in details(machine, Refused), "the cap is decided, and refused")
    assert machine.stop() == 0
    assert machine.state.writes() == []
    assert recorded(machine, LockClocks) != []


def test_a_full_ledger_disk_caps_still_and_loosens_no_more(machine: Machine) -> None:
    machine.start(file_limit=120_000)
    eventually(lambda: "Verified" in kinds(machine), "the ledger takes records")
    eventually(lambda: waits(machine) or pin_often(machine), "the ledger's disk is full", 60.0)

    machine.want(OVER_T1_MW)
    eventually(lambda: machine.locks == [LOW_T1_MHZ] * 2, "what tightens goes out without a record")
    assert verified(machine, LOW_T1_MHZ) is None
    assert waits(machine)

    machine.make_room()
    eventually(lambda: not waits(machine), "the ledger takes what has waited")
    assert verified(machine, LOW_T1_MHZ) is not None
    eventually(lambda: phases(machine) == ["raised", "cleared"], "the alarm is over")
    assert machine.stop() == 0
    assert run(["audit", "verify", "--ledger", str(machine.ledger)]) == 0


def phases(machine: Machine) -> list[str]:
    """The steps in the emergencies' lives."""
    return [event.phase for event in recorded(machine, Emergency) if isinstance(event, Emergency)]


def waits(machine: Machine) -> bool:
    """Whether records wait for the ledger."""
    return any("records wait for the ledger" in why for why in (machine.ready() or {}).get("reasons", ()))


def pin_often(machine: Machine) -> bool:
    """Say something that has to be recorded, at length; never the end of waiting."""
    state = ["--state-dir", str(machine.state_dir)]
    assert run(["pin", HOST, "--max-mhz", "1980", "--minutes", "1", "--reason", "x" * 20_000, *state]) == 0
    return False


def test_another_board_in_a_stated_place_is_seen_named_and_not_set(tmp_path: pathlib.Path) -> None:
    stated = ("GPU-00000000-0000-4000-8000-000000000000", "GPU-moved-here-from-elsewhere")
    machine = Machine(tmp_path, uuids=stated)
    with installed(machine.state):
        assert run(["run", "--config", str(machine.config), "--minutes", "0.03"]) == 0
    assert machine.state.writes(gpu=1) == []
    assert machine.locks == [SAFE_MHZ, 0], "the board that is known is kept safe"
    named = (
        f"{HOST}/gpu1: the site file states GPU-moved-here-from-elsewhere, which the driver does not know; "
        f"in its place it has {machine.state.gpu(1).uuid}"
    )
    assert any(named in detail for detail in details(machine, Failed))
    (decision, *_) = recorded(machine, Decision)
    assert isinstance(decision, Decision)
    assert decision.refusal.startswith("the row's power is not known (50% of its nameplate is read)")


def test_a_driver_that_is_away_at_the_start_is_said_and_taken_up_when_it_comes(machine: Machine) -> None:
    machine.state.fail("nvmlInit", DRIVER_NOT_LOADED)
    machine.start()
    away = f"collector/gpu-nvml/{HOST} is away: {HOST}: no NVIDIA driver answers: Driver Not Loaded"
    eventually(lambda: away in (machine.ready() or {})["reasons"], "health says what is away")
    eventually(lambda: bool(details(machine, Failed)), "that nothing can be set is on record")
    assert machine.state.writes() == []

    machine.state.clear_faults()
    eventually(lambda: verified(machine, UNCAPPED_MHZ) is not None, "the host is taken up")
    eventually(lambda: not late(machine), "the host is ready")
    assert machine.stop() == 0


def test_a_machine_is_recorded_without_being_set(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    machine.want(OVER_T1_MW)
    out = tmp_path / "machine.jsonl.gz"
    with installed(machine.state):
        assert run(["record", str(out), "--config", str(machine.config), "--minutes", "0.04"]) == 0
    assert machine.state.writes() == []
    assert not machine.state_dir.exists()
    assert run(["replay", str(out), "--expect", "recorded"]) == 0
    assert run(["explain", str(out)]) == 0
    assert f"1 host at or below {LOW_T1_MHZ} MHz by in band" in capsys.readouterr().out


def test_without_nvidia_s_package_the_extra_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert run(["run", "--config", str(machine.config)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1][:15] for line in lines] == ["collectors[0].k", "actuators[0].ki"]
    assert all("pip install -e '.[gpu]' in Windrow's clone" in line for line in lines)


# ---- releases where no host runs ----


def run_briefly(machine: Machine) -> None:
    """A host that has capped its boards and was killed, all in this process."""
    machine.want(OVER_T1_MW)
    machine.start()
    eventually(lambda: machine.locks == [LOW_T1_MHZ] * 2, "the row is capped")
    machine.stop(signal.SIGKILL)


def test_a_release_works_with_everything_else_dead(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    run_briefly(machine)
    state = ["--state-dir", str(machine.state_dir)]
    with installed(machine.state):
        assert run(["release", "--all", "--reason", "nobody is there", "--by", "ada", *state]) == 0
        assert machine.at_safe_share
        assert "at its safe share" in capsys.readouterr().out

        assert run(["release", HOST, "--reason", "now", "--uncapped", *state]) == 2
        warning = capsys.readouterr().err
        assert "lab/row-a could then draw 2550 W on a budget of 2400 W" in warning
        assert "say --yes as well" in warning
        assert machine.at_safe_share

        assert run(["release", HOST, "--reason", "now", "--uncapped", "--yes", "--json", *state]) == 0
    assert (machine.locks, machine.limits) == ([0, 0], [700.0, 700.0])
    assert f'"host":"{HOST}","ok":true,"detail":"as it was found"' in capsys.readouterr().out
    (first, second) = recorded(machine, ReleaseAll)
    assert isinstance(first, ReleaseAll)
    assert (first.by, first.reason, first.subject) == ("ada", "nobody is there", "lab")
    assert second.subject == HOST
    assert isinstance(recorded(machine, Released)[-1], Released)


def test_a_release_needs_no_ledger(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    run_briefly(machine)
    for file in machine.state_dir.glob("ledger.sqlite*"):
        file.write_bytes(b"this is no ledger" * 1_000)
    with installed(machine.state):
        said = ["--reason", "now", "--state-dir", str(machine.state_dir)]
        assert run(["release", "--all", *said]) == 0
    assert machine.at_safe_share
    assert "not in the ledger: " in capsys.readouterr().err


def test_a_released_host_is_left_alone_by_the_next_until_it_is_resumed(machine: Machine) -> None:
    run_briefly(machine)
    state = ["--state-dir", str(machine.state_dir)]
    with installed(machine.state):
        assert run(["release", "--all", "--reason", "maintenance", *state]) == 0
    machine.want(CALM_MW)
    machine.start()
    eventually(lambda: not late(machine), "the host runs again")
    before = len(recorded(machine, LockClocks))
    assert machine.at_safe_share
    assert run(["resume", "lab", *state]) == 0
    eventually(lambda: not machine.at_safe_share, "a resumed host is allowed to run above its safe share")
    assert len(recorded(machine, LockClocks)) > before
    assert machine.stop() == 0


def test_a_row_that_carries_its_nameplate_gets_back_what_was_found(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, budget_w=2_600.0)
    for gpu in machine.state.gpus:
        gpu.limit_mw = 650_000
    machine.want(600_000)
    try:
        run_briefly_at(machine, LOW_T1_MHZ)
        with installed(machine.state):
            said = ["--reason", "now", "--state-dir", str(machine.state_dir)]
            assert run(["release", "--all", *said]) == 0
    finally:
        machine.close()
    assert (machine.locks, machine.limits) == ([0, 0], [650.0, 650.0])
    assert SAFE_W not in machine.limits


def run_briefly_at(machine: Machine, mhz: int) -> None:
    """A host that has capped its boards at `mhz` and was killed."""
    machine.start()
    eventually(lambda: machine.locks == [mhz] * 2, "the row is capped")
    machine.stop(signal.SIGKILL)


def test_without_a_device_a_release_fails_and_says_so(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    run_briefly(machine)
    machine.state.deny()
    with installed(machine.state):
        machine.state.path.rename(machine.folder / "away")
        said = ["--reason", "now", "--state-dir", str(machine.state_dir)]
        assert run(["release", "--all", *said]) == 1
    assert "NOT given back" in capsys.readouterr().out


# ---- what stops a start ----


def test_a_taken_port_stops_the_start_in_words(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.start()
    other = machine.folder / "other"
    other.mkdir()
    second = Machine(other)
    with installed(second.state):
        listen = f"127.0.0.1:{machine.port}"
        assert run(["run", "--config", str(second.config), "--listen", listen, "--minutes", "0.01"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(f"health and metrics cannot be served on {listen}: Address already in use")
    )
    assert second.state.writes() == []


def test_the_installed_command_refuses_in_one_line(machine: Machine) -> None:
    (machine.state_dir / "hosts").mkdir(parents=True)
    (machine.state_dir / "epoch").write_text("seven\n", encoding="utf-8")
    done = subprocess.run(
        [WINDROW, "run", "--config", str(machine.config)],
        env=environment(machine.state),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{machine.state_dir}/epoch: must hold a whole number")
