"""Claims about deploy/ and docker-compose.yml: what is shipped to run beside a cluster can be run."""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import promql_parser
import pytest
import yaml
from prometheus_client.core import Metric
from support.cached import Unavailable
from support.compose import problems_of
from support.counterparts import PROJECT, missing
from support.rigs import START, rig_of, row_text, setup_of

from runtime.actuating import ActuationMetrics, _counted
from runtime.archive import ArchiveMetrics, _of_influx
from runtime.bus.metrics import BusMetrics
from runtime.bus.publish_metrics import PublishMetrics
from runtime.bus.publisher import PublisherState, TopicState
from runtime.cli.app import COMMANDS
from runtime.config import read_host_config
from runtime.metrics import Metrics, SourceMetrics
from runtime.polling import SourceState
from runtime.sinks.influx import SinkState
from schemas.envelope import DeadLetter
from schemas.instants import SECOND

DEPLOY = PROJECT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"secrets", "topics"}
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}


def _metrics() -> Iterator[Metric]:
    """What the processes expose after a while: a row that was run, and states made up here."""
    setup = setup_of(row_text(2, budget_w=9_000.0))
    rows = Metrics(setup.site)
    rig = rig_of(setup, observe=[rows.observe])
    rig.plant.fail_gpu("lab1/row-a/r01/h01", 0, "lost")
    rig.host.run(until=START + 20 * SECOND)
    rows.buried([DeadLetter(at=START, source="s", subject="r", topic="t", payload=b"", reason="malformed")])
    bus = BusMetrics(rows.registry)
    bus.watch(lambda: {"t": 0}, lambda: {"lab1/row-a": (0, 0)})
    bus.read("t", 1)
    bus.owned("lab1/row-a", 1, 1.0)
    bus.lost("lab1/row-a")
    bus.summed(["lab1/row-a"], ())
    yield from rows.registry.collect()
    topic = TopicState(topic="t", sent=0, waiting=0, spooled=0, spooled_bytes=0, lost={"aged": 1}, losing=())
    state = PublisherState(connected=True, away="", disk="", queued=0, topics=(topic,))
    yield from PublishMetrics(lambda: state).collect()
    yield from SourceMetrics(lambda: [SourceState("s", None, None, "", 0)]).collect()
    actuation = ActuationMetrics()
    reader = SimpleNamespace(away="", skipped=0)
    orders = SimpleNamespace(dead={"t": 1})
    agents = {"h": SimpleNamespace(kept=None)}
    actuation.ask = lambda: _counted(
        cast(Any, SimpleNamespace(reader=reader, orders=orders)),
        cast(Any, SimpleNamespace(agents=agents, faults={})),
        cast(Any, SimpleNamespace(holds={"h": None})),
    )
    yield from actuation.registry.collect()
    sink = SimpleNamespace(state=SinkState())
    series = SimpleNamespace(sink=sink, lines=SimpleNamespace(strangers=0, undatable=0))
    yield from _of_influx(cast(Any, series))
    keeper = SimpleNamespace(unreadable=0)
    part = SimpleNamespace(
        name="p", lag=lambda ends: 0, reader=reader, kept=0, keeper=keeper, faults=0, trouble=""
    )
    yield from ArchiveMetrics(cast(Any, SimpleNamespace(parts=[part], ends={}))).collect()


@functools.cache
def exposed() -> Mapping[str, Mapping[str, Set[str]]]:
    """The series that the processes expose → their labels → the values that those have."""
    series: dict[str, dict[str, set[str]]] = {"up": {"job": {"windrow"}, "instance": set()}}
    for metric in _metrics():
        for sample in metric.samples:
            labels = series.setdefault(sample.name, {"job": {"windrow"}, "instance": set()})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return series


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of a PromQL expression."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return iter(found)


def labels_of(node: Any) -> Set[str] | None:
    """The labels that what an expression finds has; None of a number. Fails where it groups by one that is
    not there."""
    match node:
        case promql_parser.VectorSelector():
            return exposed()[str(node.name)].keys()
        case promql_parser.MatrixSelector():
            return labels_of(node.vector_selector)
        case promql_parser.ParenExpr():
            return labels_of(node.expr)
        case promql_parser.AggregateExpr():
            kept = set(node.modifier.labels) if node.modifier is not None else set[str]()
            assert kept <= (labels_of(node.expr) or set()), f"{node}: groups by what is not there"
            return kept
        case promql_parser.Call():
            of_arguments = [found for each in node.args if (found := labels_of(each)) is not None]
            gone = {"le"} if node.func.name == "histogram_quantile" else set[str]()
            return set().union(*of_arguments) - gone if of_arguments else None
        case promql_parser.BinaryExpr():
            left, right = labels_of(node.lhs), labels_of(node.rhs)
            return (
                right if left is None else left if right is None or "unless" in str(node.op) else left & right
            )
    return None


def asked() -> list[tuple[str, str]]:
    """Every PromQL expression that is shipped, and where it stands."""
    alerts = [(f"alert {rule['alert']}", rule["expr"]) for rule in RULES]
    panels = [
        (f"{name}: {panel['title']}", target["expr"])
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    return alerts + panels


def test_docker_compose_takes_the_compose_file() -> None:
    try:
        assert problems_of(PROJECT / "docker-compose.yml") == ""
    except Unavailable as why:
        missing(str(why))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_bounded_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    _, _, tag = service["image"].rpartition(":")
    assert re.fullmatch(r"v?\d+(\.\d+)+", tag), "an image is pinned to a version"
    assert service["restart"] in ("unless-stopped", "on-failure")
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= limits.keys(), "no process may take the machine from the others"
    if name not in ONE_SHOT:
        assert service["healthcheck"]["test"], "a process that hangs must be seen"


def test_what_a_service_keeps_is_on_a_named_volume_or_shipped() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (PROJECT / source).exists(), f"{name}: {volume}"
    for config in COMPOSE["configs"].values():
        assert (PROJECT / config["file"]).is_file()


def test_only_this_machine_reaches_the_published_ports() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"


def test_services_and_units_run_commands_that_exist() -> None:
    commands = {
        service["command"][0] for service in SERVICES.values() if service["image"].startswith("windrow:")
    }
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=\S+/windrow (.*)$", unit.read_text(), re.MULTILINE)
        commands.add(line.split()[0])
    assert commands <= COMMANDS.keys()
    assert {"collect", "control", "actuate", "archive"} <= commands


@pytest.mark.parametrize("path", sorted((DEPLOY / "config").glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_read(path: Path, tmp_path: Path) -> None:
    config = read_host_config(path)
    assert config.kafka is not None
    assert config.kafka.security == "sasl_tls"
    assert not config.listen.startswith("127."), "Prometheus asks from another machine"
    unit = (DEPLOY / "systemd" / f"windrow-{path.stem}.service").read_text()
    assert re.findall(r"^StateDirectory=(.*)$", unit, re.MULTILINE) == [config.state_dir.name]
    assert f"EnvironmentFile=-/etc/windrow/{path.stem}.env\n" in unit, "no process has another's password"


def test_processes_of_one_machine_listen_beside_each_other() -> None:
    listens = [read_host_config(path).listen for path in sorted((DEPLOY / "config").glob("*.toml"))]
    ports = dict(zip(("actuate", "archive", "collect", "control"), listens, strict=True))
    assert ports["collect"] != ports["actuate"], "on a server"
    assert ports["control"] != ports["archive"], "on a management machine"


def test_the_compose_configuration_is_read_and_speaks_to_the_services() -> None:
    config = read_host_config(DEPLOY / "compose" / "windrow.toml")
    assert config.kafka is not None
    assert config.influx is not None
    assert {server.split(":")[0] for server in config.kafka.servers} <= SERVICES.keys()
    assert config.influx.url == "http://influxdb:8086"
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    targets = {target.split(":")[0] for target in scraped["static_configs"][0]["targets"]}
    ours = {name for name, service in SERVICES.items() if service["image"].startswith("windrow:")}
    assert targets == ours - ONE_SHOT


@pytest.mark.parametrize(("where", "expression"), asked(), ids=[where for where, _ in asked()])
def test_alerts_and_dashboards_ask_for_metrics_that_exist(where: str, expression: str) -> None:
    series = exposed()
    found = list(selectors(expression))
    assert found, where
    for selector in found:
        labels = series.get(str(selector.name))
        assert labels is not None, f"{where} asks for {selector.name}"
        for matcher in selector.matchers.matchers:
            values = labels.get(matcher.name, set())
            for wanted in matcher.value.split("|") if matcher.value != "$row" else values:
                assert wanted in values, f"{where}: no {matcher.name} of {selector.name} is {wanted}"
    labels_of(promql_parser.parse(expression))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"]["summary"]
    assert (PROJECT / "docs" / "runbooks" / f"{rule['annotations']['runbook']}.md").is_file()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_what_an_alert_says_of_its_labels_is_there(rule: dict[str, Any]) -> None:
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert told <= (labels_of(promql_parser.parse(rule["expr"])) or set())


def test_a_legend_names_labels_that_are_there() -> None:
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert told <= (labels_of(promql_parser.parse(target["expr"])) or set()), panel["title"]


@pytest.mark.parametrize(
    "rule", [r for r in RULES if r["labels"]["severity"] == "warn" and "increase(" in r["expr"]],
    ids=lambda rule: str(rule["alert"]),
)  # fmt: skip
def test_what_was_lost_before_the_first_look_is_told_too(rule: dict[str, Any]) -> None:
    """A counter that is first seen above zero has not increased, so far as Prometheus knows. Messages
    skipped at an archive's start, leases that lapsed while nobody controlled the row, and the first letter
    of a kind are counted so."""
    for name, over in re.findall(r"increase\((\w+)\[(\w+)\]\)", rule["expr"]):
        assert f"({name} unless {name} offset {over})" in rule["expr"]


def test_a_row_that_nobody_has_any_more_is_missed() -> None:
    """A worker that loses a row forgets its series, and one that is killed takes them with it."""
    (rule,) = (rule for rule in RULES if rule["alert"] == "NobodyControlsRow")
    assert "last_over_time(windrow_row_beat_timestamp_seconds[" in rule["expr"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_a_runbook_names_the_alerts_that_lead_to_it(rule: dict[str, Any]) -> None:
    page = PROJECT / "docs" / "runbooks" / f"{rule['annotations']['runbook']}.md"
    assert f"`{rule['alert']}`" in page.read_text(encoding="utf-8")
    assert f"`{rule['alert']}`" in (page.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("no systemd-analyze to read the units with; install systemd")
    copy = tmp_path / unit.name  # the same unit, of a program that is there
    copy.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit.read_text(), flags=re.MULTILINE)
    )
    said = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


def test_only_the_actuator_has_a_privilege() -> None:
    for unit in UNITS:
        text = unit.read_text()
        assert "NoNewPrivileges=yes" in text
        assert "Restart=always" in text
        if unit.stem == "windrow-actuate":
            assert "CapabilityBoundingSet=CAP_SYS_ADMIN" in text
        else:
            assert "User=windrow" in text
            assert re.search(r"^CapabilityBoundingSet=$", text, re.MULTILINE)
