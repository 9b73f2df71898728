"""Twice as many requests as can be answered, in a time that is made up: who is accepted is answered in time.

The event loop's clock leaps to whatever comes next, so that minutes pass in a moment and no machine is too slow for it.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onerec.errors import OverloadedError
from onerec.serving.batching import Batcher
from onerec.serving.engine import Query
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendResponse

BEAMS, MOST_TOGETHER, DEADLINE_S = 10, 16, 1.0
FIXED_S, EACH_S = 0.010, 0.005  # of a batch, and of each request in it
BEARABLE_PER_S = MOST_TOGETHER / (FIXED_S + MOST_TOGETHER * EACH_S)
WRITING_S = 0.0005  # of one answer, or refusal, for which the event loop does nothing else
ENGINE: Any = SimpleNamespace(content_hash="bundle", keeps_places=False)
NOTHING = np.empty(0, dtype=np.int64)


class LeapingLoop(asyncio.SelectorEventLoop):
    """Never waits: where there is nothing to do until a moment, it is that moment."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(LeapingSelector(self))

    def time(self) -> float:
        return self.now_s


class LeapingSelector(selectors.DefaultSelector):
    def __init__(self, loop: LeapingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self._loop.now_s += timeout
        return super().select(0)


class Machine(Executor):
    """Does one thing after the other, in as long as `seconds` says."""

    def __init__(self, loop: LeapingLoop, seconds: Callable[[int], float]) -> None:
        self._loop, self._seconds, self._free_s = loop, seconds, 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        result: Future[Any] = Future()
        self._free_s = max(self._free_s, self._loop.time()) + self._seconds(len(args[0]))
        self._loop.call_at(self._free_s, lambda: result.set_result(fn(*args)))
        return result


@dataclass
class Told:
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)


def overload(seconds: float, per_s: float, batch_s: Callable[[int], float]) -> Told:
    """Ask `per_s` times a second: how long each waited for its answer, from when it was sent."""
    loop, told, chance = LeapingLoop(), Told(), random.Random(0)
    limits = Limits(deadline_ms=1e3 * DEADLINE_S, max_batch_rows=BEAMS * MOST_TOGETHER, max_waiting=10_000)
    batcher = Batcher(answer, Machine(loop, batch_s), limits, loop.time)

    async def ask(sent_s: float) -> None:
        try:
            await batcher.submit(Query(ENGINE, NOTHING, 0, NOTHING, 1, BEAMS, False, timings=False))
            seen = told.accepted_s
        except OverloadedError:
            seen = told.refused_s
        loop.now_s += WRITING_S
        seen.append(loop.time() - sent_s)

    async def main() -> None:
        line = asyncio.create_task(batcher.run())
        asked, sent_s = [], 0.0
        while (sent_s := sent_s + chance.expovariate(per_s)) < seconds:
            await asyncio.sleep(sent_s - loop.time())
            asked.append(asyncio.create_task(ask(sent_s)))
        await asyncio.gather(*asked)
        line.cancel()

    run(loop, main())
    return told


def answer(queries: Any) -> list[RecommendResponse]:
    return [RecommendResponse(items=[], bundle="", beams=BEAMS, history_items_read=0)] * len(queries)


def run(loop: LeapingLoop, main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_at_twice_the_load_the_accepted_are_in_time_and_the_others_know_at_once(spread: float) -> None:
    chance = random.Random(1)

    def batch_s(num_requests: int) -> float:
        return (FIXED_S + num_requests * EACH_S) * chance.uniform(1 - spread, 1 + spread)

    told = overload(30.0, 2 * BEARABLE_PER_S, batch_s)
    assert max(told.accepted_s) <= DEADLINE_S
    # Some are let in while nobody knows yet how long batches take, or by an estimate that several slow ones belied.
    assert np.mean([seconds > 0.1 for seconds in told.refused_s]) < 0.02
    assert len(told.accepted_s) / 30.0 > 0.9 * BEARABLE_PER_S


def test_a_sudden_stop_makes_nobody_late_but_those_in_it() -> None:
    """One batch of the second minute's takes a second: what stood behind it is refused, and all goes on."""
    number = 0

    def batch_s(num_requests: int) -> float:
        nonlocal number
        number += 1
        return 1.0 if number == 100 else FIXED_S + num_requests * EACH_S

    told = overload(30.0, 2 * BEARABLE_PER_S, batch_s)
    assert sum(seconds > DEADLINE_S for seconds in told.accepted_s) <= MOST_TOGETHER
    assert len(told.accepted_s) / 30.0 > 0.85 * BEARABLE_PER_S
