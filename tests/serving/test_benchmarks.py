"""The benchmarks of the endpoint: what they count, on answers made by hand, and one run of each on a small bundle."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import live_changes, serving
from benchmarks.endpoint import FAILED, Answer, Client, http, offer
from benchmarks.live_changes import Watcher
from benchmarks.serving import Tally


def answer(status: int, seconds: float, items: tuple[int, ...] = (), due_s: float = 0.0) -> Answer:
    return Answer(status, due_s, seconds, json.dumps({"items": [{"id": item} for item in items]}).encode())


def test_answers_are_counted_by_what_became_of_them() -> None:
    tally = Tally()
    for one in (answer(200, 0.1), answer(200, 0.3), answer(503, 0.01), answer(FAILED, 60.0), answer(500, 0.1)):
        tally.see(one)
    figures = tally.figures()
    assert (figures["accepted"], figures["refused"], figures["failed"]) == (2, 1, 2)
    assert figures["p50_ms"] == pytest.approx(200)


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


def test_an_open_loop_waits_for_no_answer_and_counts_from_when_a_request_was_due() -> None:
    """A server that answers nothing for half a second, then everything: a closed loop would have sent one request."""
    seen: list[Answer] = []

    async def main() -> int:
        opened = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await opened.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        endpoint: Any = SimpleNamespace(port=server.sockets[0].getsockname()[1])
        asyncio.get_running_loop().call_later(0.5, opened.set)
        return await offer(Client(endpoint), lambda _: http("GET", "/"), 100.0, 0.4, seen.append)

    sent = asyncio.run(main())
    assert sent == len(seen) > 10
    assert {one.status for one in seen} == {200}
    assert min(one.seconds for one in seen) >= 0.09  # the last was due 0.1 s before the server woke up
    assert max(one.seconds for one in seen) > 0.3


@pytest.mark.slow
def test_the_endpoint_bears_an_overload(small_bundle: Path) -> None:
    plan = serving.Plan((8,), (5,), (0.5,), 1.0, 4)
    figures = serving.measure(small_bundle, plan, overload_s=5.0)
    assert figures["throughput"]["8"]["mean_batch"] > 1
    assert figures["accepted"] > 0
    assert figures["failed"] == figures["overload"]["crashed"] == 0


@pytest.mark.slow
def test_the_catalogue_and_the_model_change_under_load(make_live_bundle: Callable[..., Path]) -> None:
    bundle = make_live_bundle(text={"weight": 1}, given={"weight": 0})
    figures = live_changes.measure(bundle, live_changes.Plan(12, 2, 1, 0.3))
    for count in ("failed", "removed_returned", "new_missing", "lost_events", "lost_changes"):
        assert figures[count] == 0
