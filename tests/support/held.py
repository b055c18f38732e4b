"""One server for several test processes, which ends with the last of them.

The first process that asks starts a keeper, which starts the server and waits for connections. Whoever
holds the server holds a connection, so a test process that is killed lets go too. When no connection is
left the keeper ends the server; when the keeper itself is killed the kernel ends it (support.processes).
"""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import influx_server, kafka_broker
from support.cached import Unavailable, locked

PROVIDERS = {"kafka": kafka_broker.provided, "influx": influx_server.provided}
TESTS = Path(__file__).resolve().parents[1]
_FIRST_S = 30.0  # how long a keeper waits for whoever started it


@contextmanager
def held(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """What the provider `name` tells of its server, which runs at least until the end of the block.

    Every process that names the same `folder` gets the same server. Raises Unavailable.
    """
    note = folder / f"{name}.json"
    with locked(folder / f"{name}.lock"):
        connection = _joined(note)
        if connection is None:
            _keep(name, folder, note)
            connection = _joined(note)
    told: dict[str, str] = json.loads(note.read_text())
    if connection is None:
        raise Unavailable(told.get("unavailable", f"the keeper of {name} ended; see {folder}"))
    with connection:
        yield told


def _joined(note: Path) -> socket.socket | None:
    """A connection to the keeper that left `note`; None when there is none to join."""
    try:
        port = json.loads(note.read_text())["keeper"]
        return socket.create_connection(("127.0.0.1", port), timeout=10.0)
    except (OSError, KeyError):
        return None


def _keep(name: str, folder: Path, note: Path) -> None:
    """Start a keeper and wait for its note. A reason found once is not looked for again."""
    if note.exists() and "unavailable" in json.loads(note.read_text()):
        return
    with (folder / f"{name}-keeper.log").open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "support.held", name, str(folder)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert keeper.stdout is not None
    with keeper.stdout:
        said = keeper.stdout.readline()
    keeper.returncode = 0  # nobody waits for it: it outlives this process if others still hold the server
    note.write_bytes(
        said or json.dumps({"unavailable": f"the keeper of {name} ended; see {log.name}"}).encode()
    )


def _serve(name: str, folder: Path) -> None:
    """Be the keeper: tell one line, then hold the server until nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as door, PROVIDERS[name](folder) as told:
        print(json.dumps({**told, "keeper": door.getsockname()[1]}), flush=True)
        door.settimeout(_FIRST_S)
        try:
            holders = [door.accept()[0]]
        except TimeoutError:
            return
        while holders:
            for ready in select.select([door, *holders], [], [])[0]:
                if ready is door:
                    holders.append(door.accept()[0])
                else:  # holders say nothing: what can be read is their end
                    holders.remove(ready)
                    ready.close()


def main(arguments: list[str]) -> int:
    name, folder = arguments
    try:
        _serve(name, Path(folder))
    except Unavailable as error:
        print(json.dumps({"unavailable": str(error)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
