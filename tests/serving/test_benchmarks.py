"""The benchmarks of the endpoint: what they count, on answers made by hand, and one run of each on a small bundle."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import endpoint, live_changes, serving
from benchmarks.endpoint import FAILED, ROOT, Answer, Client, http, offer
from benchmarks.live_changes import Watcher
from benchmarks.serving import Tally
from onerec.bundle import Bundle


def answer(status: int, seconds: float, items: tuple[int, ...] = (), due_s: float = 0.0) -> Answer:
    return Answer(status, due_s, seconds, json.dumps({"items": [{"id": item} for item in items]}).encode())


def test_answers_are_counted_by_what_became_of_them() -> None:
    tally = Tally()
    for one in (answer(200, 0.1), answer(200, 0.3), answer(503, 0.01), answer(FAILED, 60.0), answer(500, 0.1)):
        tally.see(one)
    tally.lags_s = [0.001] * 99 + [0.5]
    figures = tally.figures()
    assert (figures["accepted"], figures["refused"], figures["failed"]) == (2, 1, 2)
    assert figures["p50_ms"] == pytest.approx(200)
    assert figures["lag_p99_ms"] == pytest.approx(1 + 0.01 * 499)  # of a hundred, just above the last but one
    assert not figures["valid"]
    tally.lags_s = [0.001] * 200 + [0.5]
    assert tally.figures()["valid"]


def test_a_removed_item_counts_only_in_answers_to_what_was_asked_afterwards() -> None:
    watcher = Watcher(removed_s={"7": 5.0})
    for one in (
        answer(200, 0.1, (7, 8), due_s=4.9),
        answer(200, 0.1, (8, 9), due_s=5.1),
        answer(200, 0.1, (8, 7), due_s=5.1),
        answer(503, 0.1),
    ):
        watcher.see(one)
    assert (watcher.removed_returned, watcher.failed, watcher.refused, len(watcher.seconds)) == (1, 1, 1, 3)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


async def listen(serve: Serve) -> Client:
    """A client of a server that answers as told."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint: Any = SimpleNamespace(port=server.sockets[0].getsockname()[1])
    return Client(endpoint)


def test_an_open_loop_waits_for_no_answer_and_counts_from_when_a_request_was_due() -> None:
    """A server that answers nothing for half a second, then everything: a closed loop would have sent one request."""
    seen: list[Answer] = []

    async def main() -> list[float]:
        opened = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await opened.wait()
            writer.write(OK)
            await writer.drain()

        client = await listen(serve)
        asyncio.get_running_loop().call_later(0.5, opened.set)
        return await offer(client, lambda _: http("GET", "/"), 100.0, 0.4, seen.append)

    lags_s = asyncio.run(main())
    assert len(lags_s) == len(seen) > 10
    assert {one.status for one in seen} == {200}
    assert min(one.seconds for one in seen) >= 0.09  # the last was due 0.1 s before the server woke up
    assert max(one.seconds for one in seen) > 0.3
    assert min(lags_s) >= 0


def test_a_load_that_is_held_up_says_so() -> None:
    async def main() -> list[float]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline():
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)

        def request(number: int) -> bytes:
            time.sleep(0.05)  # five times as long as there is
            return http("GET", "/")

        return await offer(await listen(serve), request, 100.0, 0.2, lambda _: None)

    lags_s = asyncio.run(main())
    assert lags_s[-1] > 0.04 * (len(lags_s) - 4)


def test_a_connection_is_kept_and_an_answer_may_come_in_pieces() -> None:
    async def main() -> None:
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            for _ in range(2):
                await reader.readuntil(b"\r\n\r\n")
                for part in (OK[:20], OK[20:-1], OK[-1:]):
                    writer.write(part)
                    await asyncio.sleep(0.01)
            await reader.readuntil(b"\r\n\r\n")
            writer.close()  # without an answer

        client, request = await listen(serve), http("GET", "/")
        assert [await client.send(request) for _ in range(3)] == [(200, b"{}"), (200, b"{}"), (FAILED, b"")]
        assert connections == 1
        assert await client.send(request) == (200, b"{}")
        assert connections == 2

    asyncio.run(main())


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            while await reader.readline():
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)
            writer.close()

        client = await listen(serve)
        for idle_s in (0.0, 0.0, 0.3):
            await asyncio.sleep(idle_s)
            assert await client.send(http("GET", "/")) == (200, b"{}")
        assert connections == 2

    monkeypatch.setattr(endpoint, "_MOST_IDLE_S", 0.2)
    asyncio.run(main())


def test_a_batch_call_holds_what_the_decoder_searches(small_bundle: Path) -> None:
    requests = serving.Requests(Bundle.load(small_bundle), 12, 5)
    call = requests.calls(100)
    bodies = [json.loads(call(number).partition(b"\r\n\r\n")[2])["requests"] for number in range(3)]
    assert [len(body) for body in bodies] == [100, 100, 100]
    assert bodies[0] == bodies[2] != bodies[1]
    assert bodies[1][7]["history"] == [100 + item for item in requests.histories[107]]


def test_a_benchmark_that_is_terminated_takes_its_server_along(small_bundle: Path, tmp_path: Path) -> None:
    program = (
        "import signal, sys, pathlib; from benchmarks.endpoint import serving\n"
        "with serving(pathlib.Path(sys.argv[1]), sys.argv[2]) as endpoint:\n"
        "    print(endpoint.port, flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", program, str(small_bundle), str(tmp_path / "histories.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)):
            process.terminate()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.slow
def test_the_endpoint_bears_an_overload(small_bundle: Path) -> None:
    plan = serving.Plan((12,), (5,), (0.5,), 1.0, 4, batch_widths=(12,), batches=(3,), turns=2)
    figures = serving.measure(small_bundle, plan, overload_s=5.0)
    assert [row["form"] for row in figures["forms"]] == ["single", "batch"]
    assert figures["forms"][0]["batch"] > 1
    assert figures["forms"][1]["batch"] == 3
    assert figures["accepted"] > 0
    assert figures["failed"] == figures["overload"]["crashed"] == 0


@pytest.mark.slow
def test_the_catalogue_and_the_model_change_under_load(make_live_bundle: Callable[..., Path]) -> None:
    bundle = make_live_bundle(text={"weight": 1}, given={"weight": 0})
    figures = live_changes.measure(bundle, live_changes.Plan(12, 2, 1, 0.3))
    for count in ("failed", "removed_returned", "new_missing", "lost_events", "lost_changes"):
        assert figures[count] == 0
