"""What the line expects of the next batches, by hand."""

import pytest

from onerec.serving.pace import Pace


def paced(*batches: tuple[float, int], writing_ms: float = 0.0) -> Pace:
    pace = Pace(max_batch_rows=100)
    for ms, num_rows in batches:
        pace.note_batch(ms, num_rows)
        pace.note_writing(writing_ms)
    return pace


def test_nothing_is_expected_before_eight_batches() -> None:
    few = paced(*[(50, 100)] * 7)
    assert (few.expected_ms(1_000, 100), few.own_ms) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("num_rows", "num_rows_in_work", "expected_ms"),
    [
        (10, 100, 55),  # half a millisecond a row: 110 rows, against two batches of 50
        (100, 0, 50),
        (101, 0, 50.5),  # against two batches
        (250, 100, 175),
    ],
)
def test_full_batches_are_expected_by_their_rows(num_rows: int, num_rows_in_work: int, expected_ms: float) -> None:
    assert paced(*[(50, 100)] * 8).expected_ms(num_rows, num_rows_in_work) == pytest.approx(expected_ms)


def test_after_small_batches_large_ones_are_expected_by_their_number() -> None:
    # Ten rows in 20 ms: 90 more would take 200 ms by the rows, but they are one batch beside the one in work.
    assert paced(*[(20, 10)] * 8).expected_ms(90, 10) == pytest.approx(40)


def test_batches_may_be_slow_and_answers_are_written_before_it_and_after() -> None:
    pace = paced(*[(50, 100)] * 7, (90, 100), writing_ms=6)
    assert pace.own_ms == pytest.approx(90 + 2 * 6)
    mean_ms = (7 * 50 + 90) / 8  # 55, and the slowest 35 more; of four batches one may be late by twice that
    assert pace.expected_ms(400, 0) == pytest.approx(4 * mean_ms + 2 * 35 + 2 * 6)
    for _ in range(8):  # what was slow is forgotten
        pace.note_batch(50, 100)
    assert pace.own_ms == pytest.approx(50 + 2 * 6)
