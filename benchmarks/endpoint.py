"""The endpoint as a process of its own, and load on it: an open loop, whose requests leave at their own times.

Latency counts from the moment at which a request was due to leave, so that a slow server cannot slow down its own
measurement. By how much the load itself was behind its times is told, too: a client that is held up sees delays that no
server made. It speaks plain HTTP/1.1 over connections that it keeps: one with more comfort costs more processor time a
request than the server.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ADMIN_KEY = "admin-key-of-the-benchmark"
FAILED = 0  # the status of a request that got no answer
_HEADER_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_ANSWER_TIMEOUT_S = 60.0  # beyond which a request has failed, for the server has hung
# A server closes connections that lie idle, Uvicorn after five seconds: at the moment, perhaps, at which one is used.
_MOST_IDLE_S = 2.0

Done = Callable[[int, bytes], None]  # is told the status and the body of an answer


@dataclass(frozen=True)
class Endpoint:
    """A server that listens on this machine."""

    port: int
    process: "subprocess.Popen[str]"

    @property
    def cpu_s(self) -> float:
        """Processor seconds that it has taken (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mib(self) -> float:
        """Memory that it holds (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def leave_core() -> AbstractSet[int]:
    """Keep this process, and what it starts, off the last of its cores, which is returned: for the load.

    Raises:
        SystemExit: there is one core only.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit(f"--pin: found {len(cores)} core, expected two: the server's and the load's. Leave it out.")
    os.sched_setaffinity(0, cores[:-1])
    return frozenset(cores[-1:])


@contextmanager
def on_cores(cores: AbstractSet[int]) -> Iterator[None]:
    """Run this thread on some cores; wherever it runs now, if there are none."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _ending_by_exit() -> Iterator[None]:
    """SIGTERM ends this program as `sys.exit` does, so that what it has started is ended too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def serving(bundle: Path, histories: str | Path, limits: Sequence[str] = ()) -> Iterator[Endpoint]:
    """A server of a bundle, killed in the end, and where SIGTERM ends this program; to be used in its main thread.

    Args:
        limits: such as `max_batch_rows=512`.
    """
    command = [sys.executable, str(ROOT / "serve.py"), "--bundle", str(bundle), "--histories", str(histories)]
    command += ["--port", "0", *(word for limit in limits for word in ("--set", limit))]
    environment = {**os.environ, "ONEREC_ADMIN_KEY": ADMIN_KEY}
    with (
        _ending_by_exit(),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
        ) as process,
    ):
        stdout = process.stdout
        assert stdout is not None
        # A line a request: a pipe that nobody empties would be full after some hundreds, and the server wait for ever.
        reader = threading.Thread(target=lambda: deque(stdout, maxlen=0))
        try:
            address = re.search(r":(\d+)/v1", stdout.readline())
            if address is None:
                raise RuntimeError(f"the server did not start: {command}")
            reader.start()
            yield Endpoint(int(address[1]), process)
        finally:
            process.kill()
            if reader.ident is not None:
                reader.join()


class _Connection(asyncio.Protocol):
    """Carries one request at a time and goes back to the idle ones with its answer.

    Requests are not sent one behind the other: the server answers those of a connection one by one, so that they would
    wait for each other.
    """

    def __init__(self, idle: list["_Connection"]) -> None:
        self._idle, self._received = idle, bytearray()
        self._done: Done | None = None
        self._transport: asyncio.Transport | None = None
        self._idle_since_s = 0.0  # of the monotonic clock

    @property
    def idle_s(self) -> float:
        """For how long it has had nothing to do."""
        return time.monotonic() - self._idle_since_s

    def close(self) -> None:
        """Give it up."""
        assert self._transport is not None
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes, done: Done) -> None:
        assert self._transport is not None
        self._done = done
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(_HEADER_END)
        if head_end < 0:
            return
        length = _LENGTH.search(self._received, 0, head_end + 2)
        assert length is not None
        begin = head_end + len(_HEADER_END)
        if len(self._received) < begin + int(length[1]):
            return
        status, body = int(self._received[len("HTTP/1.1 ") :][:3]), bytes(self._received[begin:])
        self._received.clear()
        self._idle_since_s = time.monotonic()
        self._idle.append(self)
        self._tell(status, body)

    def connection_lost(self, _: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        self._tell(FAILED, b"")

    def _tell(self, status: int, body: bytes) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(status, body)


class Client:
    """Connections to one endpoint, as many as there are requests under way; of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._port = endpoint.port
        self._idle: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()

    def ask(self, request: bytes, done: Done) -> None:
        """Send a request; `done` is told status and body of the answer, the status FAILED where there is none."""
        while self._idle:  # the last has been idle for the shortest
            connection = self._idle.pop()
            if connection.idle_s < _MOST_IDLE_S:
                connection.ask(request, done)
                return
            connection.close()
        task = asyncio.create_task(self._open(request, done))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """What `ask` tells, waited for."""
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def done(status: int, body: bytes) -> None:
            if not answer.done():
                answer.set_result((status, body))

        self.ask(request, done)
        try:
            return await asyncio.wait_for(answer, _ANSWER_TIMEOUT_S)
        except TimeoutError:
            return FAILED, b""

    async def _open(self, request: bytes, done: Done) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self._idle), "127.0.0.1", self._port)
        except OSError:
            done(FAILED, b"")
        else:
            connection.ask(request, done)


@dataclass(frozen=True)
class Answer:
    """What came back to one request."""

    status: int
    due_s: float  # of the monotonic clock
    seconds: float  # since then
    body: bytes


def http(method: str, path: str, body: bytes = b"") -> bytes:
    """A request as it is written to the connection; it carries the admin key."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def offer(
    client: Client,
    request: Callable[[int], bytes],
    rate_per_s: float,
    seconds: float,
    see: Callable[[Answer], None],
    seed: int = 0,
    catch_up: bool = True,
) -> list[float]:
    """Send requests at random moments, `rate_per_s` of them on average; seconds by which each left after it was due.

    Args:
        request: the request of a number.
        see: is shown each answer, which nobody keeps.
        catch_up: send what is overdue at once, where this process was held up; else it is sent from then on at the
            rate, so that whoever holds it up does not make a burst of the load.
    """
    random = np.random.default_rng(seed)
    lags_s: list[float] = []
    due_s_of: dict[int, float] = {}  # number of a request under way -> when it was due
    all_seen = asyncio.Event()
    due_s = begin_s = time.monotonic()

    def done(number: int, status: int, body: bytes) -> None:
        was_due_s = due_s_of.pop(number, None)
        if was_due_s is not None:
            see(Answer(status, was_due_s, time.monotonic() - was_due_s, body))
        if not due_s_of:
            all_seen.set()

    while (due_s := due_s + random.exponential(1 / rate_per_s)) < begin_s + seconds:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        now_s = time.monotonic()
        if not catch_up:
            due_s = max(due_s, now_s)
        number = len(lags_s)
        lags_s.append(now_s - due_s)
        due_s_of[number] = due_s
        client.ask(request(number), partial(done, number))
    all_seen.clear()
    if due_s_of:
        with suppress(TimeoutError):
            await asyncio.wait_for(all_seen.wait(), _ANSWER_TIMEOUT_S)
    for number in list(due_s_of):
        done(number, FAILED, b"")
    return lags_s


async def keep_busy(
    client: Client, request: Callable[[int], bytes], num_waiting: int, seconds: float
) -> tuple[int, float]:
    """Keep `num_waiting` requests under way (a closed loop): how many were answered well, in how many seconds."""
    begin_s, answered, number = time.monotonic(), 0, 0

    async def work() -> None:
        nonlocal answered, number
        while time.monotonic() - begin_s < seconds:
            number += 1
            status, _ = await client.send(request(number))
            answered += status == 200

    workers: list[Awaitable[None]] = [work() for _ in range(num_waiting)]
    await asyncio.gather(*workers)
    return answered, time.monotonic() - begin_s
