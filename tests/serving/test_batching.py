"""The line before the model: who is decoded together, who is refused, and that one failure stays alone."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onerec.errors import OverloadedError, ServingError
from onerec.serving.batching import Batcher
from onerec.serving.engine import Query
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendResponse

NOTHING = np.empty(0, dtype=np.int64)
ENGINE: Any = SimpleNamespace(content_hash="bundle", keeps_places=False)  # the queue only asks which is for which


def make_query(beams: int = 10, exact: bool = False, k: int = 1) -> Query:
    return Query(ENGINE, NOTHING, 0, NOTHING, k, beams, exact, timings=False)


class Model:
    """Answers with the query's k as `history_items_read`; the first batch waits until the gate opens."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.seconds = 0.0
        self.slow = -1  # the query whose batch takes half a second

    def answer(self, queries: Sequence[Query]) -> list[RecommendResponse]:
        self.gate.wait(timeout=60)
        time.sleep(0.5 if any(query.k == self.slow for query in queries) else self.seconds)
        self.batches.append([query.k for query in queries])
        if any(query.k == 13 for query in queries):
            raise ServingError("thirteen")
        return [RecommendResponse(items=[], bundle="", beams=1, history_items_read=query.k) for query in queries]


def in_line(limits: Limits, use: Callable[[Batcher, Model], Awaitable[None]]) -> Model:
    """Run `use` while a batcher works; the model it answers with."""

    async def main() -> Model:
        model = Model()
        with ThreadPoolExecutor(max_workers=1) as executor:
            batcher = Batcher(model.answer, executor, limits)
            task = asyncio.create_task(batcher.run())
            try:
                await use(batcher, model)
            finally:
                model.gate.set()
                task.cancel()
        return model

    return asyncio.run(main())


async def start_first(batcher: Batcher) -> "asyncio.Task[RecommendResponse]":
    """A request that the model is busy with until its gate opens."""
    task = asyncio.create_task(batcher.submit(make_query(k=99)))
    while True:
        await asyncio.sleep(0.01)
        if batcher.num_waiting == 0:
            return task


def test_what_waits_is_decoded_together_by_kind_and_up_to_the_rows() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        first = await start_first(batcher)
        queries = [make_query(k=1), make_query(k=2, beams=20), make_query(k=3), make_query(k=4, exact=True)]
        queries += [make_query(k=number) for number in (5, 6, 7)]
        answers = asyncio.gather(*map(batcher.submit, queries))
        await asyncio.sleep(0.01)
        model.gate.set()
        assert [answer.history_items_read for answer in await answers] == [1, 2, 3, 4, 5, 6, 7]
        await first

    model = in_line(Limits(max_batch_rows=40, batch_wait_ms=0), use)
    assert model.batches == [[99], [1, 3, 5, 6], [2], [4], [7]]


def test_who_comes_in_company_waits_for_no_more() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        model.gate.set()
        company = asyncio.gather(*(batcher.submit(make_query(k=number), lone=False) for number in (1, 2, 3)))
        await asyncio.wait_for(company, 30)
        lone = asyncio.create_task(batcher.submit(make_query(k=4)))
        await asyncio.sleep(0.05)
        assert not lone.done()
        lone.cancel()

    assert in_line(Limits(batch_wait_ms=60_000), use).batches == [[1, 2, 3]]


def test_one_failure_spoils_no_other_answer() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        model.gate.set()
        answers = await asyncio.gather(
            *(batcher.submit(make_query(k=number)) for number in (12, 13, 14)), return_exceptions=True
        )
        assert [getattr(answer, "history_items_read", str(answer)) for answer in answers] == [12, "thirteen", 14]

    assert in_line(Limits(), use).batches == [[12, 13, 14], [12], [13], [14]]


def test_a_defect_of_the_line_leaves_nobody_waiting() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        model.gate.set()
        broken = dataclasses.replace(make_query(), engine=SimpleNamespace())
        found = await asyncio.gather(batcher.submit(broken), batcher.submit(broken), return_exceptions=True)
        assert [type(each) for each in found] == [AttributeError, AttributeError]
        assert (await batcher.submit(make_query(k=5))).history_items_read == 5

    in_line(Limits(), use)


def test_a_full_line_refuses_at_once() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        first = await start_first(batcher)
        second = asyncio.create_task(batcher.submit(make_query(k=1)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="1 requests are waiting already"):
            await batcher.submit(make_query(k=2))
        model.gate.set()
        assert ((await first).history_items_read, (await second).history_items_read) == (99, 1)

    in_line(Limits(max_waiting=1), use)


def test_a_request_beyond_its_deadline_and_one_whose_client_has_gone_are_not_decoded() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        first = await start_first(batcher)
        late, gone = (asyncio.create_task(batcher.submit(make_query(k=number))) for number in (1, 2))
        await asyncio.sleep(1.2)
        gone.cancel()
        fresh = asyncio.create_task(batcher.submit(make_query(k=3)))
        await asyncio.sleep(0)
        model.gate.set()
        with pytest.raises(OverloadedError, match="more than its deadline"):
            await late
        assert (await fresh).history_items_read == 3
        await first

    assert in_line(Limits(deadline_ms=1000, batch_wait_ms=0), use).batches == [[99], [3]]


def test_an_answer_found_too_late_is_a_refusal_but_for_who_found_the_line_empty() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        model.slow = 1
        first = await start_first(batcher)
        late = asyncio.create_task(batcher.submit(make_query(k=1)))
        await asyncio.sleep(0)
        model.gate.set()
        assert (await first).history_items_read == 99
        with pytest.raises(OverloadedError, match="later than its deadline"):
            await late
        await asyncio.sleep(0.05)
        assert (await batcher.submit(make_query(k=1))).history_items_read == 1

    assert in_line(Limits(deadline_ms=300, batch_wait_ms=0), use).batches == [[99], [1], [1]]


def test_who_would_wait_beyond_the_deadline_is_refused_at_once() -> None:
    async def use(batcher: Batcher, model: Model) -> None:
        model.gate.set()
        model.seconds = 0.05
        for number in range(8):
            await batcher.submit(make_query(k=number))
        # Nine batches of one are before the tenth: half a second at least. The first three are in time.
        answers = await asyncio.gather(
            *(batcher.submit(make_query(k=100 + number)) for number in range(10)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
        assert 6 <= len(refused) <= 9
        assert all("an answer would take" in str(error) for error in refused)
        assert not isinstance(answers[0], OverloadedError)
        assert (await batcher.submit(make_query(k=200))).history_items_read == 200  # the line is empty again

    model = in_line(Limits(max_batch_rows=10, batch_wait_ms=0, deadline_ms=220), use)
    assert len(model.batches) < 8 + 5 + 1
