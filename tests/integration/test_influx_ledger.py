"""A ledger in InfluxDB answers as the file does: every question, on the same records, word for word."""

from __future__ import annotations

import json
import pathlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.messages import messages
from support.rigs import START, in_band, rig_of, row_text, setup_of

from controllers.policy import DEFAULT_POLICY
from runtime.bus.settings import InfluxConfig
from runtime.cli.app import run
from runtime.clock import SystemClock
from runtime.ledger import audit
from runtime.ledger.book import AmbiguousId, Book, LedgerUnreadable, UnknownId
from runtime.ledger.history import curve, history
from runtime.ledger.standing import last_decisions, last_troubles, pins, standing
from runtime.ledger.store import Ledger
from runtime.sinks.influx import InfluxSink
from runtime.sinks.influx_ledger import InfluxLedger, quoted
from runtime.sinks.lines import Lines, ledger_lines
from schemas import codec
from schemas.commands import Command
from schemas.decisions import Decision
from schemas.emergencies import Emergency
from schemas.envelope import DeadLetter, Event
from schemas.instants import MINUTE, SECOND, Instant, to_text
from schemas.operators import Pin
from schemas.outcomes import Outcome, Verified
from schemas.samples import FeedSample, PowerRollup
from twin.workload import LoadProfile

pytestmark = pytest.mark.counterpart

RISING = LoadProfile(requests_per_s=0.35, points=((0.0, 0.05), (30.0, 0.05), (90.0, 1.0), (420.0, 1.0)))
END = START + 8 * MINUTE
SITE = row_text(4, budget_w=20_000.0)


class Both(NamedTuple):
    """The same records in a file and in InfluxDB."""

    file: Ledger
    influx: InfluxLedger


def stored(events: Sequence[Event], config: InfluxConfig, folder: pathlib.Path, first: int = 0) -> None:
    """Records written to InfluxDB, at the places from `first` on."""
    sink = InfluxSink(config, aside=folder / "aside", clock=SystemClock(), stop=threading.Event())
    lines = [
        line
        for place, event in enumerate(events, first)
        for line in ledger_lines(event, codec.encode(event), place)
    ]
    assert sink.put(lines)
    assert sink.state.refused == 0, (folder / "aside").read_text(encoding="utf-8")
    sink.close()


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Eight minutes of an oversubscribed row of four: mains fail, a host is pinned, caps come and go."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    policy = msgspec.structs.replace(
        in_band(), guardrails=msgspec.structs.replace(DEFAULT_POLICY.guardrails, dwell_ms=10 * SECOND)
    )
    with Ledger(path, durable=False) as ledger:
        rig = rig_of(setup_of(SITE, policy), load=RISING, ledger=ledger)
        rig.host.run(until=START + 5 * SECOND)
        rig.plant.fail_ups()
        rig.host.run(until=START + 9 * SECOND)
        rig.plant.restore_ups()
        rig.host.run(until=START + 20 * SECOND)
        rig.host.loop.offer(
            [
                Pin(
                    at=START + 20 * SECOND, source="operator", subject="lab1/row-a/r01/h01", max_mhz=900,
                    by="ada", reason='a "hot" aisle, \\ and ${more}\n', expires_at=START + 10 * MINUTE,
                )
            ]
        )  # fmt: skip
        rig.host.run(until=END - 20 * SECOND)
        rig.plant.fail_ups()
        rig.host.run(until=END)
    with Ledger.reading(path) as ledger:
        yield ledger


@pytest.fixture
def both(book: Ledger, influx: InfluxConfig, tmp_path: pathlib.Path) -> Iterator[Both]:
    with sqlite3.connect(book.path) as db:
        bodies = [body for (body,) in db.execute("SELECT body FROM records ORDER BY seq")]
    db.close()
    stored([codec.decode(body) for body in bodies], influx, tmp_path)
    with InfluxLedger(influx) as ledger:
        yield Both(book, ledger)


def config_of(influx: InfluxConfig, folder: pathlib.Path) -> pathlib.Path:
    """A configuration by which the command line asks this InfluxDB."""
    (folder / "site.toml").write_text(SITE, encoding="utf-8")
    config = folder / "host.toml"
    config.write_text(
        'site = "site.toml"\nstate_dir = "state"\n'
        f'[influx]\nurl = "{influx.url}"\norg = "{influx.org}"\nbucket = "{influx.bucket}"\n',
        encoding="utf-8",
    )
    return config


def answer(ask: Callable[[Book], Any], book: Book) -> Any:
    """An answer, or the words with which it is refused."""
    try:
        return ask(book)
    except (UnknownId, AmbiguousId, audit.UnknownCommand) as error:
        return type(error).__name__, str(error)


def test_every_question_has_the_same_answer(both: Both) -> None:
    commands = [event for event in both.file.of_type(Command.__subclasses__()) if isinstance(event, Command)]
    some = commands[:: max(1, len(commands) // 12)]
    verified = next(both.file.of_type([Verified]))
    moments = [START, START + 7 * SECOND, START + 30 * SECOND, START + 3 * MINUTE, END, END + 10 * MINUTE]
    questions: list[Callable[[Book], Any]] = [
        *(lambda book, id=command.id: audit.why(book, id) for command in some),
        lambda book: audit.why(book, verified.id[:12]),
        lambda book: audit.why(book, verified.cause[0]),
        lambda book: audit.why(book, next(book.of_type([FeedSample])).id),
        lambda book: audit.why(book, next(book.of_type([Decision])).id),
        *(
            lambda book, start=start: audit.why(book, start)
            for start in ("", "a", "0b", "f00", "zz", "0" * 20)
        ),
        *(
            lambda book, at=at, target=target: audit.who(book, target, at)
            for at in moments
            for target in ("lab1", "lab1/row-a/r01/h01", "lab1/row-a/r01/h0", "elsewhere")
        ),
        *(lambda book, since=since: audit.alerts(book, since) for since in (0, *moments)),
        *(lambda book, at=at: pins(book, at) for at in moments),
        *(lambda book, at=at: standing(book, at) for at in moments),
        *(lambda book, at=at: last_troubles(book, at) for at in moments),
        *(lambda book, at=at: last_decisions(book, ["lab1/row-a"], at) for at in moments),
    ]
    for question in questions:
        assert answer(question, both.influx) == answer(question, both.file)
    assert len(audit.alerts(both.file, 0)) > 1, "the run was to be eventful"
    assert any(audit.why(both.file, command.id).samples for command in some)


def test_a_rows_history_is_the_same_and_so_is_its_curve_where_both_hold_it(
    both: Both, influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    row = "lab1/row-a"
    rollups = list(both.file.of_type([PowerRollup]))
    points = Lines(setup_of(SITE).site)
    sink = InfluxSink(influx, aside=tmp_path / "aside", clock=SystemClock(), stop=threading.Event())
    assert sink.put([line for event in rollups for line in points.of(event)])
    sink.close()
    for since, until in ((START, END), (START + MINUTE + 1, START + 4 * MINUTE + 7), (END + 1, END + MINUTE)):
        told = history(both.file, row, since, until)
        assert history(both.influx, row, since, until) == told
        for step_ms in (2 * SECOND, 7 * SECOND):
            ours, theirs = (
                curve(both.file, row, since, until, step_ms),
                both.influx.curve(row, since, until, step_ms),
            )
            assert [point.at for point in theirs.points] == [point.at for point in ours.points]
            for mine, their in zip(ours.points, theirs.points, strict=True):
                assert their.power_w == pytest.approx(mine.power_w, rel=1e-12)
                assert (their.peak_w, their.coverage_ratio) == (mine.peak_w, mine.coverage_ratio)
    whole = history(both.file, row, START, END)
    assert {"U", "B"} <= {moment.mode for moment in whole.moments}
    assert any(moment.commands.get("Brake") for moment in whole.moments)
    assert whole.troubles
    assert whole.mode_at(END) == whole.moments[-1].mode
    assert whole.mode_at(START - 1) == ""


def test_the_command_line_says_the_same_of_either(
    both: Both, influx: InfluxConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(influx, tmp_path)
    verified = next(both.file.of_type([Verified]))
    at, end = to_text(START + 3 * MINUTE), to_text(END)
    for question in (
        ["audit", "why", verified.id],
        ["audit", "who", "--target", "lab1/row-a", "--at", at],
        ["audit", "alerts"],
        ["audit", "alerts", "--json"],
        ["audit", "why", "zz"],
    ):
        status = run([*question, "--ledger", str(both.file.path)])
        said = capsys.readouterr()
        assert (run([*question, "--config", str(config)]), capsys.readouterr()) == (status, said)
    question = ["history", "lab1/row-a", "--since", at, "--until", end, "--json"]
    answers = []
    for source in (["--ledger", str(both.file.path)], ["--config", str(config)]):
        assert run([*question, *source]) == 0
        answers.append(json.loads(capsys.readouterr().out)["history"])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "question",
    [
        ["audit", "alerts", "--json", "--since", "0001-01-01"],
        ["audit", "alerts", "--json", "--since", "9999-12-31"],
        ["audit", "who", "--json", "--target", "lab1/row-a", "--at", "9999-12-31"],
        ["audit", "who", "--json", "--target", "lab1/row-a", "--at", "0001-01-01"],
        ["history", "lab1/row-a", "--json", "--since", "0001-01-01", "--until", "9999-12-31"],
        ["history", "lab1/row-a", "--json", "--since", "9999-12-30", "--until", "9999-12-31"],
        ["history", "lab1/row-a", "--json", "--since", "0001-01-01", "--until", "0001-01-02"],
    ],
    ids=" ".join,
)
def test_a_time_beyond_what_influxdb_can_date_is_answered_all_the_same(
    question: list[str],
    both: Both,
    influx: InfluxConfig,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of(influx, tmp_path)
    answers = []
    for source in (["--ledger", str(both.file.path)], ["--config", str(config)]):
        status = run([*question, *source])
        said = capsys.readouterr()
        assert said.err == ""
        answer = json.loads(said.out)
        answers.append((status, answer["history"] if question[0] == "history" else answer))
    assert answers[0] == answers[1]


def test_records_come_in_the_ledgers_order_either_way(both: Both) -> None:
    kinds: list[type[Event]] = [Emergency, PowerRollup, *Outcome.__subclasses__(), *Command.__subclasses__()]
    for since, until in (
        (0, None),
        (START + MINUTE, None),
        (0, END - MINUTE),
        (START + MINUTE, START + 3 * MINUTE),
    ):
        for newest_first in (False, True):

            def ask(book: Book, s: Instant = since, u: Instant | None = until, n: bool = newest_first) -> Any:
                return list(book.of_type(kinds, since=s, until=u, newest_first=n))

            assert ask(both.influx) == ask(both.file)
    assert list(both.influx.of_type(kinds, since=END, until=START)) == []
    assert both.influx.subjects(kinds, "lab1/row-a") == both.file.subjects(kinds, "lab1/row-a")
    ids = [event.id for event in both.file.of_type(kinds)][::5]
    assert both.influx.many([*ids, "nobody"]) == both.file.many(ids)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(messages(), min_size=1, max_size=25, unique_by=lambda event: event.id))
def test_any_record_comes_back_as_it_went_in(
    events: list[Event], influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    records = [msgspec.structs.replace(event, at=event.at % (8 * MINUTE) + START) for event in events]
    stored(records, influx, tmp_path, first=999_990)
    with InfluxLedger(influx) as ledger:
        assert ledger.many([event.id for event in records]) == {event.id: event for event in records}


def test_records_of_one_millisecond_keep_their_order_where_their_places_pass_a_million(
    influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    said = [
        DeadLetter(at=START, source=f"s{n}", subject="lab1", topic="t", payload=b"", reason="r")
        for n in range(9)
    ]
    stored(said, influx, tmp_path, first=999_996)
    stored(said[2:4], influx, tmp_path, first=1_000_400)  # and two of them once more
    with InfluxLedger(influx) as ledger:
        assert list(ledger.of_type([DeadLetter])) == said
        assert list(ledger.of_type([DeadLetter], until=START, newest_first=True)) == said[::-1]
        assert ledger.get(said[3].id) == said[3]


def test_a_record_as_long_as_kafka_takes_comes_back_whole(
    influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    long = DeadLetter(
        at=START, source="s", subject="lab1", topic="t", payload=bytes(range(256)) * 2_700, reason='"\n' * 9
    )
    assert 900_000 < len(codec.encode(long)) < 1_000_000
    stored([long], influx, tmp_path)
    with InfluxLedger(influx) as ledger:
        assert ledger.get(long.id) == long


@pytest.mark.parametrize(
    "words",
    [
        '") |> drop(columns: ["_value"]) //',
        '" or true or r.subject == "',
        "${1 + 1}",
        "\\x22",
        "a\nb\t\x00",
        "é漢\U0001f600",
        "//",
    ],
)
def test_no_words_of_a_question_are_taken_for_a_query(
    words: str, influx: InfluxConfig, tmp_path: pathlib.Path
) -> None:
    def letter(subject: str) -> DeadLetter:
        return DeadLetter(
            at=START, source="s", subject=subject, topic="t", payload=b"", reason="r", id=words + subject
        )

    ours, others = letter(f"lab1/{words}"), letter("lab1/row-a")
    stored([ours, others], influx, tmp_path)
    with InfluxLedger(influx) as ledger:
        assert list(ledger.of_type([DeadLetter], subject=f"lab1/{words}")) == [ours]
        assert ledger.get(ours.id) == ours
        assert ledger.find(ours.id) == ours
        assert ledger.get(words) is None
        assert ledger.subjects([DeadLetter], f"lab1/{words}") == [f"lab1/{words}"]
        assert audit.who(ledger, words, START) == ()
    assert quoted(words).isascii()


def test_what_keeps_it_from_answering_is_said_in_a_sentence_without_the_token(
    influx: InfluxConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(config: InfluxConfig) -> str:
        with InfluxLedger(config) as ledger, pytest.raises(LedgerUnreadable) as told:
            ledger.get("abc")
        return str(told.value)

    assert 'could not find bucket "nowhere"' in asked(msgspec.structs.replace(influx, bucket="nowhere"))
    away = msgspec.structs.replace(influx, url="http://127.0.0.1:9")
    assert "InfluxDB at http://127.0.0.1:9 does not answer" in asked(away)
    monkeypatch.setenv(influx.token_env, "not-the-token")
    told = asked(influx)
    assert "refuses our token (WINDROW_INFLUX_TOKEN)" in told
    assert "not-the-token" not in told
