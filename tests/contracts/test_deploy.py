"""Claims about deploy/ and docker-compose.yml: what is shipped to run beside a cluster can be run."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
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

from runtime.actuating import ActuationMetrics, _counted
from runtime.archive import ArchiveMetrics, _of_influx
from runtime.bus.metrics import BusMetrics
from runtime.bus.publish_metrics import PublishMetrics
from runtime.bus.publisher import PublisherState, TopicState
from runtime.cli.app import COMMANDS
from runtime.config import load_site, read_host_config
from runtime.metrics import Metrics
from runtime.sinks.influx import SinkState

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
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}


def _metrics() -> Iterator[Metric]:
    """What the processes expose: each one's own collectors, over states made up here."""
    rows = Metrics(load_site(PROJECT / "twin" / "scenarios" / "demo-row.toml")).registry
    BusMetrics(rows).watch(lambda: {"windrow.gpus": 0})
    yield from rows.collect()
    topic = TopicState(topic="t", sent=0, waiting=0, spooled=0, spooled_bytes=0, lost={"aged": 1}, losing=())
    state = PublisherState(connected=True, away="", disk="", queued=0, topics=(topic,))
    yield from PublishMetrics(lambda: state).collect()
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


def exposed() -> dict[str, set[str]]:
    """The series that the processes expose → their labels, as far as the metric says them."""
    series: dict[str, set[str]] = {"up": {"job", "instance"}}
    for metric in _metrics():
        labels = {label for sample in metric.samples for label in sample.labels}
        for suffix in _SUFFIXES.get(metric.type, ("",)):
            series[metric.name + suffix] = labels
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
    assert (DEPLOY / "systemd" / f"windrow-{path.stem}.service").is_file()


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
    found = list(selectors(expression.replace("$row", "x")))
    assert found, where
    for selector in found:
        assert selector.name in series, f"{where} asks for {selector.name}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"]["summary"]
    assert (PROJECT / "docs" / "runbooks" / f"{rule['annotations']['runbook']}.md").is_file()


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
