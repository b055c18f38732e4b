"""The table of topics: every type has one home, and a recording has one order."""

from schemas import commands, decisions, emergencies, envelope, forecasts, operators, outcomes, samples
from schemas.envelope import Event, Tick
from schemas.topics import BY_NAME, BY_TYPE, TOPICS, TYPES, topic_of

BASES = {Event, commands.Command, forecasts.Forecast, outcomes.Outcome}
MODULES = (commands, decisions, emergencies, envelope, forecasts, operators, outcomes, samples)


def test_every_message_type_is_said_on_exactly_one_topic() -> None:
    defined = {
        kind
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Event)
    }
    listed = [kind for topic in TOPICS for kind in topic.types]
    assert set(listed) == defined - BASES
    assert len(listed) == len(set(listed)) == len(TYPES)


def test_each_type_is_tagged_on_the_wire_with_its_own_name() -> None:
    assert [kind.__struct_config__.tag for kind in TYPES] == [kind.__name__ for kind in TYPES]
    assert {kind.__struct_config__.tag_field for kind in TYPES} == {"type"}


def test_ranks_are_unique_so_that_a_recording_has_one_order() -> None:
    ranks = [topic.rank for topic in TOPICS]
    assert ranks == sorted(set(ranks))


def test_causes_rank_before_their_effects() -> None:
    chain = (
        samples.GpuFrame,
        Tick,
        samples.PowerRollup,
        forecasts.PeakForecast,
        emergencies.Emergency,
        decisions.Decision,
        commands.LockClocks,
    )
    ranks = [BY_TYPE[kind].rank for kind in chain]
    assert ranks == sorted(ranks)
    assert BY_TYPE[outcomes.Verified].rank < BY_TYPE[Tick].rank, "an outcome of the last period is input"


def test_topics_are_named_for_windrow_and_can_be_kafka_topics() -> None:
    assert len(BY_NAME) == len(TOPICS)
    for topic in TOPICS:
        first, _, last = topic.name.partition(".")
        assert first == "windrow"
        assert last.replace("-", "").isalpha()
        assert last == last.lower()


def test_topics_are_keyed_by_a_power_domain_and_kept_for_a_while() -> None:
    assert {topic.key for topic in TOPICS} == {"row", "site"}
    assert all(topic.partitions > 0 and topic.retention_ms > 0 for topic in TOPICS)
    row_wide = {
        topic.partitions for topic in TOPICS if topic.key == "row" and topic.types != (envelope.DeadLetter,)
    }
    assert len(row_wide) == 1, "a row's topics meet on one partition only if all have as many"


def test_a_message_knows_its_topic() -> None:
    assert topic_of(Tick(at=1, source="s", subject="ams1/row-b")) is BY_NAME["windrow.ticks"]
