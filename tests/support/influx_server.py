"""InfluxDB 2's own server on this machine, for tests and for `make influx`.

It is built once from its Go module (`influxd_build/go.mod` names the version) and stays in the cache:
that takes minutes, and Go, Rust and a C compiler. A server is ready in a fraction of a second.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import docker_images
from support.cached import Unavailable, cache, kept
from support.processes import Server, free_ports, until_told

BUILD = Path(__file__).with_name("influxd_build")
VERSION = re.search(r"influxdb/v2 v(\S+)", (BUILD / "go.mod").read_text())[1]  # type: ignore[index]  # our own file
PKG_CONFIG = "github.com/influxdata/pkg-config@v0.2.7"  # builds Flux's Rust part on the way
IMAGE = "influxdb:2.7"
ORG = "windrow"
_START_S = 120.0  # a fifth of a second on an idle machine


def influxd() -> Path:
    """The server's program, built if it is not there. Raises Unavailable where it cannot be."""
    return kept(f"influxd-{VERSION}", _build) / "influxd"


def _build(folder: Path) -> None:
    lacking = [tool for tool in ("go", "cargo", "cc") if shutil.which(tool) is None]
    if lacking:
        raise Unavailable(
            f"building influxd needs Go, Rust and a C compiler; not found: {', '.join(lacking)}"
        )
    # Some 3 GB of modules and objects, which nothing else here uses: kept apart, and dropped at the end.
    with tempfile.TemporaryDirectory(prefix=".influxd-build-", dir=cache()) as apart:
        work = Path(apart)
        tools = work / "bin"
        tools.mkdir()
        # Flux denies lints, and compilers newer than the one it was written with have more of them.
        lenient = tools / "lenient-rustc"
        lenient.write_text('#!/bin/sh\nexec "$@" --cap-lints warn\n')
        lenient.chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "GOPATH": str(work / "go"),
            "GOBIN": str(tools),
            "GOMODCACHE": str(work / "modules"),
            "GOCACHE": str(work / "objects"),
            "GOFLAGS": "-modcacherw -buildvcs=false",
            "RUSTC_WRAPPER": str(lenient),
            **_rust_toolchain(),
        }
        for name in ("go.mod", "go.sum"):
            shutil.copy(BUILD / name, work / name)
        program = "github.com/influxdata/influxdb/v2/cmd/influxd"
        for command in (
            ["go", "install", PKG_CONFIG],
            ["go", "build", "-mod=mod", "-o", str(folder / "influxd"), program],
        ):
            done = subprocess.run(
                command, cwd=work, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Unavailable(f"{' '.join(command)} failed: {done.stderr[-2000:]}")


def _rust_toolchain() -> dict[str, str]:
    """The installed toolchain, named: Flux names an older one, which rustup would fetch."""
    if shutil.which("rustup") is None:
        return {}
    active = subprocess.run(
        ["rustup", "show", "active-toolchain"], capture_output=True, text=True, check=False, cwd=cache()
    )
    return {"RUSTUP_TOOLCHAIN": active.stdout.split()[0]} if active.stdout else {}


def ask(url: str, token: str, path: str, message: dict[str, Any] | None = None, method: str = "") -> Any:
    """One request to the API of the server at `url`. Raises OSError."""
    request = urllib.request.Request(
        url + path,
        data=None if message is None else json.dumps(message).encode(),
        headers={"Authorization": f"Token {token}", "Content-Type": "application/json"},
        method=method or ("GET" if message is None else "POST"),
    )
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        body = answer.read()
    return json.loads(body) if body else None


class InfluxServer:
    """One server of one test (or one person), with its data in `folder`, organisation and token set up.

    It keeps its port and its data from start to start.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self._program = influxd()
        self._folder = folder
        self._port = free_ports(1)[0] if port is None else port
        self.url = f"http://127.0.0.1:{self._port}"
        folder.mkdir(parents=True, exist_ok=True)
        kept_token = folder / "token"
        if not kept_token.exists():
            kept_token.touch(mode=0o600)
            kept_token.write_text(secrets.token_urlsafe(24))
        self.token = kept_token.read_text()
        self._server: Server | None = None

    def start(self) -> None:
        """Start it, again if need be, and wait until it answers. Raises Unavailable."""
        paths = []
        for option, name in (("engine", "engine"), ("bolt", "influxd.bolt"), ("sqlite", "influxd.sqlite")):
            paths += [f"--{option}-path", str(self._folder / name)]
        listens = ["--http-bind-address", f"127.0.0.1:{self._port}", "--reporting-disabled"]
        log = self._folder / "influxd.log"
        self._server = Server([str(self._program), *paths, *listens, "--log-level", "warn"], log)
        give_up = time.monotonic() + _START_S
        while not self._answers():
            if not self._server.running or time.monotonic() > give_up:
                self._server.kill()
                raise Unavailable(f"influxd does not answer; its log ends: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        if ask(self.url, "", "/api/v2/setup")["allowed"]:
            who = {
                "username": "windrow",
                "password": secrets.token_urlsafe(12),
                "org": ORG,
                "bucket": "windrow",
            }
            ask(self.url, "", "/api/v2/setup", {**who, "token": self.token})

    def _answers(self) -> bool:
        try:
            return bool(ask(self.url, "", "/health")["status"] == "pass")
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """End it in order."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def pause(self) -> None:
        """Its connections stay open and nothing is answered: a server that is too slow."""
        self._process.pause()

    def resume(self) -> None:
        """Let a paused one go on."""
        self._process.resume()

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.running

    @property
    def _process(self) -> Server:
        assert self._server is not None, "it was never started"
        return self._server


def _container(token: str) -> Any:
    """A server in docker, set up and running. Raises Unavailable."""
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.wait_strategies import HttpWaitStrategy
    except ImportError as error:
        raise Unavailable(str(error)) from None
    setup = {
        "MODE": "setup",
        "USERNAME": "windrow",
        "PASSWORD": secrets.token_urlsafe(12),
        "ORG": ORG,
        "BUCKET": "windrow",
        "ADMIN_TOKEN": token,
    }
    try:
        container = DockerContainer(IMAGE).with_exposed_ports(8086)
        for key, value in setup.items():
            container.with_env(f"DOCKER_INFLUXDB_INIT_{key}", value)
        return container.waiting_for(HttpWaitStrategy(8086, "/health").for_status_code(200)).start()
    except (DockerException, TimeoutError) as error:
        raise Unavailable(str(error).splitlines()[0]) from None


@contextmanager
def provided(folder: Path) -> Iterator[dict[str, str]]:
    """A server for tests to share, by the first way there is: `url`, `token`, `org` and `what`.

    Raises Unavailable with what was tried.
    """
    given = os.environ.get("WINDROW_TEST_INFLUX")
    if given:
        token = os.environ.get("WINDROW_TEST_INFLUX_TOKEN", "")
        org = os.environ.get("WINDROW_TEST_INFLUX_ORG", ORG)
        what = f"InfluxDB at {given} (WINDROW_TEST_INFLUX)"
        yield {"url": given.rstrip("/"), "token": token, "org": org, "what": what}
        return
    token = secrets.token_urlsafe(24)
    try:
        container = _container(token)
    except Unavailable as error:
        no_docker = str(error)
    else:
        try:
            url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(8086)}"
            yield {"url": url, "token": token, "org": ORG, "what": f"InfluxDB in docker ({IMAGE}) at {url}"}
        finally:
            container.stop()
        return
    if not (cache() / f"influxd-{VERSION}").is_dir():
        # Not from here: the build takes longer than any test may.
        raise Unavailable(
            f"no InfluxDB: WINDROW_TEST_INFLUX is not set; docker: {no_docker}; influxd is not built: "
            "`make test` builds it, or PYTHONPATH=tests python -m support.influx_server prepare"
        )
    server = InfluxServer(folder / "influx")
    server.start()
    try:
        yield {
            "url": server.url,
            "token": server.token,
            "org": ORG,
            "what": f"influxd {VERSION} at {server.url}",
        }
    finally:
        server.kill()


def prepare() -> str:
    """Build what `provided` will need, so that no test waits for it. Says what there is.

    Raises Unavailable.
    """
    if os.environ.get("WINDROW_TEST_INFLUX"):
        return "the InfluxDB of WINDROW_TEST_INFLUX"
    in_docker = docker_images.ready(IMAGE)
    if in_docker is not None:
        return in_docker
    if not (cache() / f"influxd-{VERSION}").is_dir():
        print(f"Building influxd {VERSION}, once; this takes minutes", flush=True)
    return f"influxd {VERSION} in {influxd().parent}"


def serve(folder: Path, port: int) -> None:
    """Run one server until Ctrl-C or SIGTERM. Its data and token stay in `folder`."""
    server = InfluxServer(folder, port)
    server.start()
    print(f"influxd {VERSION} at {server.url}, organisation {ORG}, bucket windrow.", flush=True)
    print(f"Data in {folder}, the token in {folder / 'token'}. Ctrl-C ends it.", flush=True)
    try:
        until_told()
    finally:
        server.stop()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="support.influx_server", description=__doc__)
    parser.add_argument("do", choices=["prepare", "serve"])
    parser.add_argument("--folder", type=Path, default=Path("out/influx"))
    parser.add_argument("--port", type=int, default=8086)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.do == "prepare":
            print(prepare())
        else:
            serve(chosen.folder.resolve(), chosen.port)
    except Unavailable as error:
        print(f"windrow: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
