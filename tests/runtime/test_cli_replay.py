"""`windrow record --twin`, `replay`, `explain`: what was recorded is said again, other policies compared."""

from __future__ import annotations

import gzip
import json
import pathlib

import pytest
from support.counterparts import shared_data
from support.rigs import row_text
from support.sites import PROJECT

from collectors.recording import read_recording
from runtime.cli.app import run
from schemas import codec
from schemas.recordings import decode_header

SCENARIOS = PROJECT / "twin" / "scenarios"
SMALL = SCENARIOS / "small-row.jsonl.gz"
MINUTES = "3"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three minutes of an oversubscribed row of four on a bad evening, recorded by the command."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "site.toml").write_text(row_text(4, budget_w=20_000.0), encoding="utf-8")
    (folder / "policy.toml").write_text('path = "in_band"\n', encoding="utf-8")
    out = folder / "night.jsonl.gz"
    assert record(out, folder / "site.toml", "--policy", str(folder / "policy.toml")) == 0
    return out


def record(out: pathlib.Path, site: pathlib.Path, *more: str) -> int:
    """The command for a few simulated minutes of the surge."""
    return run(["record", str(out), "--twin", str(site), "--from-minute", "36", "--minutes", MINUTES, *more])


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What a command printed as JSON."""
    return dict(json.loads(capsys.readouterr().out))


def policy(folder: pathlib.Path, name: str, text: str) -> str:
    """A policy file's name."""
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# ---- recording ----


def test_a_recording_holds_what_it_was_made_from(recording: pathlib.Path) -> None:
    header = read_recording(recording).header
    assert header.site == row_text(4, budget_w=20_000.0)
    assert header.policy == 'path = "in_band"\n'
    assert header.made_by == "windrow record --twin"


def test_the_same_seed_gives_the_same_bytes(recording: pathlib.Path, tmp_path: pathlib.Path) -> None:
    beside = recording.parent
    again, other = tmp_path / "again.jsonl.gz", tmp_path / "other.jsonl.gz"
    for out, seed in ((again, "1"), (other, "2")):
        assert record(out, beside / "site.toml", "--policy", str(beside / "policy.toml"), "--seed", seed) == 0
    assert again.read_bytes() == recording.read_bytes()
    assert other.read_bytes() != recording.read_bytes()


def test_the_recording_that_ships_is_the_one_that_its_command_makes(tmp_path: pathlib.Path) -> None:
    """Beat for beat and word for word; a figure may differ in its last digit on another processor."""
    site = SCENARIOS / "small-row.toml"
    (command,) = [line for line in site.read_text(encoding="utf-8").splitlines() if "windrow record" in line]
    tokens = command.lstrip("# ").split()[1:]
    assert tokens[1] == SMALL.name
    assert tokens[3] == site.name
    out = tmp_path / "small.jsonl.gz"
    assert run(["record", str(out), "--twin", str(site), *tokens[4:]]) == 0
    ships, made = read_recording(SMALL), read_recording(out)
    assert made.header == ships.header
    said = [[(type(event), event.subject, event.at) for event in each.events] for each in (ships, made)]
    assert said[0] == said[1], f"make it again: {command.lstrip('# ')}"
    assert SMALL.stat().st_size < 300_000


def test_a_recording_that_cannot_be_written_is_refused(
    tmp_path: pathlib.Path, recording: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(tmp_path / "nowhere" / "out.jsonl", recording.parent / "site.toml") == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/nowhere/out.jsonl: the recording cannot be written: No such file or directory\n"
    )


def test_a_columnar_recording_is_replayed_like_any_other(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, beside = tmp_path / "night.parquet", recording.parent
    assert record(out, beside / "site.toml", "--policy", str(beside / "policy.toml")) == 0
    lines, columns = read_recording(recording), read_recording(out)
    assert columns.header == lines.header
    assert list(map(codec.encode, columns.events)) == list(map(codec.encode, lines.events))
    assert columns.count_beats() == lines.count_beats() == 90
    assert run(["replay", str(out), "--expect", "recorded"]) == 0
    assert "said the same as expected, byte for byte" in capsys.readouterr().out
    assert record(out, beside / "site.toml") == 2
    assert capsys.readouterr().err == (
        f"{out}: is there already, and no recording is written over: choose another name\n"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--kafka"], "--kafka records the site of a configuration with [kafka]: name it with --config"),
        (["--kafka", "--twin", "site.toml"], "--twin simulates a row and --kafka reads a site"),
        (["--kafka", "--config", "{config}"], "kafka is missing: write [kafka] with servers"),
    ],
)
def test_what_cannot_be_recorded_off_a_bus_is_said(
    recording: pathlib.Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recording.parent / "never.parquet"
    assert run(["record", str(out), *(each.format(config=config_of(recording)) for each in more)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--to-kafka publishes to the brokers of a configuration: name it with --config"),
        (["--expect", "recorded"], "--to-kafka publishes and decides nothing"),
        (["--speed", "fast"], "--speed fast: must be a number above zero (1 is as it was), or max"),
        (["--speed", "0"], "--speed 0: must be a number above zero"),
        (["--config", "{config}"], "kafka is missing: write [kafka] with servers"),
    ],
)
def test_what_cannot_be_published_is_said(
    recording: pathlib.Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [each.format(config=config_of(recording)) for each in more]
    assert run(["replay", str(recording), "--to-kafka", *asked]) == 2
    assert said in capsys.readouterr().err


def config_of(recording: pathlib.Path) -> pathlib.Path:
    """A host's configuration without brokers."""
    path = recording.parent / "windrow.toml"
    path.write_text('site = "site.toml"\nstate_dir = "state"\n', encoding="utf-8")
    return path


# ---- our own, under its own policy ----


@pytest.mark.parametrize("expect", [[], ["--expect", "recorded"]])
def test_a_recording_says_again_what_was_said(
    recording: pathlib.Path, expect: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", str(recording), *expect]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "night.jsonl.gz: lab1/row-a, 2026-03-01T18:36:00.000Z to 2026-03-01T18:38:58.000Z, 90 beats"
    )
    assert "said the same as expected, byte for byte" in told
    assert run(["replay", str(recording), "--json"]) == 0
    found = answer(capsys)
    assert (found["same"], found["dead_letters"], found["note"]) == (True, 0, "")


def test_the_caps_come_and_go_in_the_recording_that_ships(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["replay", str(SMALL), "--json"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["summaries"]
    assert summary["modes_s"].keys() >= {"T1", "T2a", "T2b"}
    assert summary["capped_minutes"]["low"] > 5


def test_one_changed_reading_is_found(recording: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = gzip.decompress(recording.read_bytes()).splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"FeedSample"' in line and i > 100)
    event = codec.decode(lines[place])
    changed = json.loads(codec.encode(event))
    changed["power_w"] *= 0.5
    tampered = tmp_path / "tampered.jsonl"
    tampered.write_bytes(
        b"".join([*lines[:place], json.dumps(changed).encode() + b"\n", *lines[place + 1 :]])
    )
    assert run(["replay", str(tampered)]) == 1


def test_what_was_said_can_be_kept_and_expected(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = tmp_path / "golden.jsonl"
    assert run(["replay", str(recording), "--output", str(golden)]) == 0
    assert run(["replay", str(recording), "--expect", str(golden)]) == 0
    lines = golden.read_bytes().splitlines(keepends=True)
    assert all(codec.encode(codec.decode(line)) + b"\n" == line for line in lines)

    for name, other in (("longer", [*lines, lines[-1]]), ("shorter", lines[:-1]), ("swapped", lines[::-1])):
        golden.write_bytes(b"".join(other))
        assert run(["replay", str(recording), "--expect", str(golden)]) == 1, name
    assert "DIFFERS from what was expected" in capsys.readouterr().out


def test_a_recording_cut_short_says_the_same_up_to_there(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gzip.decompress(recording.read_bytes())
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    assert run(["replay", str(cut)]) == 0
    assert "the recording was cut short in line" in capsys.readouterr().out


def test_lines_that_are_no_messages_are_counted_and_the_rest_goes_on(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *lines = gzip.decompress(recording.read_bytes()).splitlines(keepends=True)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"".join([head, b"what?\n", *lines, b'{"type":"Nothing"}\n']))
    assert run(["replay", str(damaged)]) == 0
    assert "2 lines could not be read and were kept whole as dead letters" in capsys.readouterr().out


# ---- other policies ----


def test_another_policy_decides_otherwise_and_each_stretch_says_how(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = policy(tmp_path, "off.toml", 'variant = "off"\n')
    assert run(["replay", str(recording), "--against", off]) == 0
    told = capsys.readouterr().out
    assert "against off" in told
    assert "above T1 0.800: low priority (2 hosts) to 1275 MHz" in told
    assert "against U: row at " in told
    assert run(["replay", str(recording), "--against", off, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is None
    assert found["against"][0]["capped_minutes"] == {"high": 0.0, "low": 0.0}
    assert found["differences"] != []
    assert all(each["since"] <= each["until"] for each in found["differences"])


def test_a_policy_against_itself_decides_alike(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = policy(tmp_path, "same.toml", 'path = "in_band"\n')
    assert run(["replay", str(recording), "--policy", same, "--against", same]) == 0
    assert "both policies decide alike" in capsys.readouterr().out


def test_the_defaults_are_the_same_stated_or_not(
    recording: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording made without a policy file holds an empty one."""
    spelled_out = str(PROJECT / "deploy" / "policies" / "polca.toml")
    assert run(["replay", str(SMALL), "--against", spelled_out]) == 0
    assert "both policies decide alike" in capsys.readouterr().out
    assert read_recording(SMALL).header.policy == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "off.toml", "--expect", "recorded"], "--expect recorded: needs a recording of our own"),
        (["--against", "off.toml", "--output", "x"], "--against compares two policies: leave --expect and"),
        (["--against", "slow.toml"], "night.jsonl.gz, its policy looks every 2000 ms and "),
        (["--policy", "bad.toml"], "bad.toml: "),
        (["--policy", "none.toml"], "none.toml: the policy file cannot be read: No such file or directory"),
        (["--budget-kw", "3"], "night.jsonl.gz: is a recording of our own and brings its site"),
        (
            ["--expect", "none.jsonl"],
            "none.jsonl: what was expected cannot be read: No such file or directory",
        ),
        (["--output", "none/out"], "none/out: cannot be written: No such file or directory"),
    ],
)
def test_what_a_replay_cannot_do_is_said(
    recording: pathlib.Path,
    more: list[str],
    said: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy(tmp_path, "off.toml", 'variant = "off"\n')
    policy(tmp_path, "slow.toml", "period_ms = 3000\n")
    policy(tmp_path, "bad.toml", 'variant = "of"\n')
    (tmp_path / recording.name).write_bytes(recording.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(["replay", recording.name, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_file_of_no_known_format_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.csv").write_text("when,what\n1,2\n", encoding="utf-8")
    assert run(["replay", str(tmp_path / "notes.csv"), "--budget-kw", "1"]) == 2
    assert "is of no format that can be imported" in capsys.readouterr().err
    assert run(["replay", str(tmp_path / "none.jsonl")]) == 2


def test_a_recording_of_a_site_that_cannot_be_read_is_refused(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, _, rest = gzip.decompress(recording.read_bytes()).partition(b"\n")
    damaged = tmp_path / "site.jsonl"
    damaged.write_bytes(head.replace(b"budget_w = 20000.0", b"budget_w = 0") + b"\n" + rest)
    assert decode_header(damaged.read_bytes().split(b"\n")[0]).epoch == 1
    assert run(["replay", str(damaged)]) == 2
    assert f"{damaged}, its site: rows[0].budget_w = 0: must be above zero" in capsys.readouterr().err


# ---- others' recordings ----


def test_nodes_in_training_are_replayed_under_a_budget_and_drawn(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = shared_data("gpu_power/mlperf/train_v4.0_smc-ac-power_8xH100node_llama2_70b_lora_0.csv")
    plot = tmp_path / "course.png"
    assert run(["replay", str(trace), "--budget-kw", "60", "--plot", str(plot), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (summary,) = found["summaries"]
    assert found["same"] is None
    assert summary["budget_w"] == 60_000.0
    assert summary["peak_w"] > 20_000.0
    assert plot.read_bytes().startswith(b"\x89PNG")

    assert run(["replay", str(trace)]) == 2
    assert "an import (mlperf) needs --budget-kw for its row, or --site" in capsys.readouterr().err


def test_one_board_that_serves_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    trace = shared_data("gpu_power/vllm_h100/background_opt-1.3b_8.csv")
    assert run(["replay", str(trace), "--budget-kw", "1.5", "--json"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["summaries"]
    assert summary["beats"] > 10


# ---- explain ----


def test_a_moment_of_a_recording_is_explained(
    recording: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", str(recording), "--at", "2026-03-01T18:37:00Z"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("lab1/row-a at 2026-03-01T18:37:00.000Z: ")
    assert "4 of 4 hosts known" in told
    assert "capping/polca, mode " in told
    assert "commands would go out now" in told

    assert run(["explain", str(recording), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["subject"] == "lab1/row-a"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--at", "noon"], "'noon' is not a time; write it like 2026-03-01T12:00:00Z"),
        (["--at", "2020-01-01"], "holds no beat of lab1/row-a by 2020-01-01"),
        (["--row", "lab1/row-z"], "has no row 'lab1/row-z'; it has lab1/row-a"),
    ],
)
def test_what_cannot_be_explained_is_said(
    recording: pathlib.Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", str(recording), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
