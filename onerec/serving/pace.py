"""When a new request would be answered, by what the latest batches took."""

import math
from collections import deque

_NUM_TIMED = 8  # latest batches, by whose times the next ones are expected


class Pace:
    """Times of the latest batches; nothing is expected to take any time before there were enough to tell.

    Args:
        max_batch_rows: beams of all requests that are decoded together.
    """

    def __init__(self, max_batch_rows: int) -> None:
        self._max_batch_rows = max_batch_rows
        self._batches: deque[tuple[float, int]] = deque(maxlen=_NUM_TIMED)  # milliseconds and rows
        self._writings_ms: deque[float] = deque(maxlen=_NUM_TIMED)
        self._mean_ms = self._row_ms = self._slowest_ms = self._writing_ms = 0.0

    @property
    def own_ms(self) -> float:
        """What a request in the next batch is to reckon with."""
        return self._slowest_ms + self._writing_ms

    @property
    def writing_ms(self) -> float:
        """What an answer is to reckon with once it is found."""
        return self._writing_ms

    def note_batch(self, ms: float, num_rows: int) -> None:
        """A batch took so long, until the next one could begin."""
        self._batches.append((ms, num_rows))
        self._estimate()

    def note_writing(self, ms: float) -> None:
        """From the end of a batch's search it took so long until all of its answers were written."""
        self._writings_ms.append(ms)
        self._estimate()

    def expected_ms(self, num_rows: int, num_rows_in_work: int) -> float:
        """Time until the last of so many waiting rows would be answered.

        The less of two estimates: by the number of batches, which is too much after batches larger than those to come,
        and by the number of rows, which is too much after smaller ones. Any batch may take as long as the slowest of
        the latest, but not all of them: by chance, what n are late by grows with the root of n.
        """
        if not self._mean_ms:
            return 0.0
        num_batches = math.ceil(num_rows / self._max_batch_rows) + (num_rows_in_work > 0)
        mean_ms = min(num_batches * self._mean_ms, (num_rows + num_rows_in_work) * self._row_ms)
        late_ms = (self._slowest_ms - self._mean_ms) * math.sqrt(mean_ms / self._mean_ms)
        return mean_ms + late_ms + self._writing_ms

    def _estimate(self) -> None:
        """What is asked for with every request, and changes with every batch.

        Writing counts twice: a request may have lain unread for as long, while the answers before its own were written.
        """
        if len(self._batches) < _NUM_TIMED:
            return
        total_ms = sum(ms for ms, _ in self._batches)
        self._mean_ms, self._row_ms = total_ms / _NUM_TIMED, total_ms / sum(rows for _, rows in self._batches)
        self._slowest_ms = max(ms for ms, _ in self._batches)
        self._writing_ms = 2 * max(self._writings_ms, default=0.0)
