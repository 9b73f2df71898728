"""The endpoint as a process of its own, and load on it: an open loop, whose requests leave at their own times.

Latency counts from the moment at which a request was due to leave, so that a slow server cannot slow down its own
measurement. The client speaks plain HTTP/1.1 over connections that it keeps: one with more comfort costs more processor
time a request than the server.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ADMIN_KEY = "admin-key-of-the-benchmark"
FAILED = 0  # the status of a request that got no answer
_HEADER_END = b"\r\n\r\n"
_ANSWER_TIMEOUT_S = 60.0  # beyond which a request has failed, for the server has hung

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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


@contextmanager
def serving(bundle: Path, histories: str | Path, limits: Sequence[str] = ()) -> Iterator[Endpoint]:
    """A server of a bundle, killed in the end.

    Args:
        limits: such as `max_batch_rows=512`.
    """
    command = [sys.executable, str(ROOT / "serve.py"), "--bundle", str(bundle), "--histories", str(histories)]
    command += ["--port", "0", *(word for limit in limits for word in ("--set", limit))]
    environment = {**os.environ, "ONEREC_ADMIN_KEY": ADMIN_KEY}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r":(\d+)/v1", line)
    if address is None:
        raise RuntimeError(f"the server did not start: {command}")
    endpoint = Endpoint(int(address[1]), process)
    # A line a request: a pipe that nobody empties would be full after some hundreds, and the server wait for ever.
    reader = threading.Thread(target=process.stdout.read)
    reader.start()
    try:
        yield endpoint
    finally:
        endpoint.kill()
        reader.join()
        process.stdout.close()


class Client:
    """Connections to one endpoint; as many as there are requests under way."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._port = endpoint.port
        self._idle: list[Connection] = []

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; the status is FAILED where there is none."""
        try:
            return await asyncio.wait_for(self._exchange(request), _ANSWER_TIMEOUT_S)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return FAILED, b""

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connection()
        try:
            writer.write(request)
            head = await reader.readuntil(_HEADER_END)
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            body = await reader.readexactly(int(length[1]))
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1]), body

    async def _connection(self) -> Connection:
        """One that waits, or a new one; the server closes those that waited for long."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


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
) -> int:
    """Send requests at random moments, `rate_per_s` of them on average; how many were sent.

    Args:
        request: the request of a number.
        see: is shown each answer, which nobody keeps.
        catch_up: send what is overdue at once, where this process was held up; else it is sent from then on at the
            rate, so that whoever holds it up does not make a burst of the load.
    """
    random = np.random.default_rng(seed)
    under_way: set[asyncio.Task[None]] = set()
    due_s = begin_s = time.monotonic()
    number = 0

    async def one(content: bytes, due_s: float) -> None:
        status, body = await client.send(content)
        see(Answer(status, due_s, time.monotonic() - due_s, body))

    while (due_s := due_s + random.exponential(1 / rate_per_s)) < begin_s + seconds:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        if not catch_up:
            due_s = max(due_s, time.monotonic())
        task = asyncio.create_task(one(request(number), due_s))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
    await asyncio.gather(*under_way)
    return number


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
