"""Micro-batching: requests that wait at the same moment are decoded together.

One inference thread works through what waits. While it is busy requests gather, and the next batch takes the oldest and
all that may join it: the same number of beams and the same kind of search, up to a number of rows, a row being one beam
of one request. A batch of one is answered as if it were alone, so that batching changes no answer but by rounding.

Who would be answered beyond the deadline is refused at once, by what the latest batches took (`onerec.serving.pace`): a
refusal that comes early lets the caller ask elsewhere, and the line stays as short as the answers in it are of use.
Whom the estimate let in and whom a slow batch then held up is refused before the search, or, where their own batch was
the slow one, after it: of those who stood behind others nobody is answered late. Who found the line empty is answered
however long that takes, or a search longer than the deadline would never be answered.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from onerec.errors import OverloadedError
from onerec.serving.engine import Query
from onerec.serving.limits import Limits
from onerec.serving.pace import Pace
from onerec.serving.schema import RecommendResponse

_RESERVE = 0.2  # share of the deadline that is kept for what the estimate errs by

Answer = Callable[[Sequence[Query]], list[RecommendResponse]]


@dataclass
class _Waiting:
    query: Query
    answer: asyncio.Future[RecommendResponse]
    since_s: float
    lone: bool
    first: bool  # nobody was before it


class Batcher:
    """Queue in front of the inference thread; `run` it as a task of the event loop.

    Args:
        answer: answers queries of one kind, in `executor`.
        clock: seconds since some moment.
    """

    def __init__(
        self, answer: Answer, executor: Executor, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answer, self._executor, self._limits, self._clock = answer, executor, limits, clock
        self._waiting: deque[_Waiting] = deque()
        self._arrival = asyncio.Event()
        self._pace = Pace(limits.max_batch_rows)
        self._num_rows_waiting = self._num_rows_in_work = 0

    @property
    def num_waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return len(self._waiting)

    @property
    def _is_idle(self) -> bool:
        return not self._waiting and not self._num_rows_in_work

    async def submit(self, query: Query, lone: bool = True) -> RecommendResponse:
        """Wait in line and return the answer.

        Args:
            lone: it came by itself and may wait for company.

        Raises:
            OverloadedError: the line is full or too slow, or the answer would come later than its deadline.
        """
        if self.num_waiting >= self._limits.max_waiting:
            raise OverloadedError(f"{self.num_waiting} requests are waiting already, as many as may. Try again later.")
        if (expected_ms := self._expected_ms(query)) > (1 - _RESERVE) * self._limits.deadline_ms:
            raise OverloadedError(
                f"an answer would take {expected_ms:.0f} ms, too close to its deadline or beyond it. Try again later."
            )
        answer = asyncio.get_running_loop().create_future()
        waiting = _Waiting(query, answer, self._clock(), lone, first=self._is_idle)
        self._waiting.append(waiting)
        self._num_rows_waiting += query.beams
        self._arrival.set()
        return await waiting.answer

    async def run(self) -> None:
        """Answer what waits, batch by batch, until cancelled."""
        while True:
            await self._arrival.wait()
            try:
                await self._answer_next()
            except Exception as error:  # a defect here must not leave everybody waiting for ever
                self._refuse_all(error)
            if not self._waiting:
                self._arrival.clear()

    async def _answer_next(self) -> None:
        if self._waiting[0].lone and self._num_rows_waiting < self._limits.max_batch_rows:
            await asyncio.sleep(self._limits.batch_wait_ms / 1e3)
        if batch := self._take_batch():
            begin_s, self._num_rows_in_work = self._clock(), _num_rows(batch)
            searched_s = await self._answer_batch(batch)
            self._pace.note_batch(1e3 * (self._clock() - begin_s), self._num_rows_in_work)
            self._num_rows_in_work = 0
            # Called after all that the answers have woken, which is when they are written.
            asyncio.get_running_loop().call_soon(self._note_written, searched_s)

    def _note_written(self, searched_s: float) -> None:
        self._pace.note_writing(1e3 * (self._clock() - searched_s))

    def _refuse_all(self, error: Exception) -> None:
        for waiting in self._waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
        self._waiting, self._num_rows_waiting = deque(), 0

    def _expected_ms(self, query: Query) -> float:
        """Time until a new query would be answered; 0 where nobody is before it, so that there is always somebody."""
        if self._is_idle:
            return 0.0
        return self._pace.expected_ms(self._num_rows_waiting + query.beams, self._num_rows_in_work)

    def _take_batch(self) -> list[_Waiting]:
        """The oldest request and those that can be decoded with it; whom it would answer too late is refused."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        # Their own batch takes its time too, but never so much of the deadline that nobody could be answered.
        most_ms = self._limits.deadline_ms - min(self._pace.own_ms, self._limits.deadline_ms / 2)
        for waiting in self._waiting:
            if waiting.answer.done():  # its client has gone
                continue
            waited_ms = 1e3 * (self._clock() - waiting.since_s)
            if waited_ms > most_ms:
                waiting.answer.set_exception(
                    OverloadedError(f"the request has waited for {waited_ms:.0f} ms, more than its deadline allows.")
                )
            elif self._may_join(waiting.query, batch):
                batch.append(waiting)
            else:
                left.append(waiting)
        self._waiting, self._num_rows_waiting = left, _num_rows(left)
        return batch

    def _may_join(self, query: Query, batch: Sequence[_Waiting]) -> bool:
        if not batch:
            return True
        fits = (len(batch) + 1) * query.beams <= self._limits.max_batch_rows
        return fits and batch[0].query.kind == query.kind

    async def _answer_batch(self, batch: Sequence[_Waiting]) -> float:
        """Set every request's answer, and say when it was found.

        Where a batch fails, each of its requests is tried alone, so that one cannot spoil the others.
        """
        loop = asyncio.get_running_loop()
        queries = [waiting.query for waiting in batch]
        try:
            answers, searched_s = await loop.run_in_executor(self._executor, self._search, queries)
        except Exception as error:
            if len(batch) > 1:
                return [await self._answer_batch([waiting]) for waiting in batch][-1]
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return self._clock()
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                self._settle(waiting, answer)
        return searched_s

    def _settle(self, waiting: _Waiting, answer: RecommendResponse) -> None:
        late_ms = 1e3 * (self._clock() - waiting.since_s) + self._pace.writing_ms - self._limits.deadline_ms
        if waiting.first or late_ms <= 0:
            waiting.answer.set_result(answer)
        else:
            waiting.answer.set_exception(
                OverloadedError(f"the answer would come {late_ms:.0f} ms later than its deadline. Try again later.")
            )

    def _search(self, queries: Sequence[Query]) -> tuple[list[RecommendResponse], float]:
        return self._answer(queries), self._clock()


def _num_rows(requests: Iterable[_Waiting]) -> int:
    return sum(waiting.query.beams for waiting in requests)
