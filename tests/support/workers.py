"""Workers of `windrow control` as processes of their own, told to be quick."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

from support.processes import Server, free_ports

from runtime.bus.settings import KafkaConfig

_RUN = "from runtime.cli import main; main()"

QUICK = ("--snapshot-seconds", "4", "--dead-after-seconds", "6")
"""A group takes no worker for dead before 6 s."""


class Worker(Server):
    """One worker in a folder of its own."""

    def __init__(self, folder: Path, kafka: KafkaConfig, site: str, *options: str, policy: str = "") -> None:
        folder.mkdir(parents=True)
        (folder / "site.toml").write_text(site)
        (folder / "policy.toml").write_text(policy)
        (self.port,) = free_ports(1)
        servers = ", ".join(f'"{server}"' for server in kafka.servers)
        config = folder / "worker.toml"
        config.write_text(
            f"""
site = "site.toml"
{'policy = "policy.toml"' if policy else ""}
state_dir = "state"
[health]
listen = "127.0.0.1:{self.port}"
[kafka]
servers = [{servers}]
prefix = "{kafka.prefix}"
{_login(kafka) if kafka.sasl else ""}
"""
        )
        command = (sys.executable, "-c", _RUN, "control", "--config", str(config))
        super().__init__((*command, *(options or QUICK)), folder / "worker.log")

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def get(self, page: str) -> tuple[int, str]:
        """A page of its metrics and health: status and text."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{page}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def _login(kafka: KafkaConfig) -> str:
    ca = f'ca = "{kafka.ca}"' if kafka.ca else ""
    return f'''
security = "{kafka.security}"
mechanism = "{kafka.mechanism}"
username = "{kafka.username}"
{ca}
'''
