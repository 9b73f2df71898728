"""Stored histories: newest events in order, whole or not at all, there after a kill."""

import threading
from pathlib import Path

import pytest

from onerec.errors import OverloadedError, ServingError
from onerec.serving.histories import SqliteHistories, StoredEvent
from onerec.serving.stores import open_stores


def make(*rows: tuple[str, str, float]) -> list[StoredEvent]:
    return [StoredEvent(*row) for row in rows]


def test_newest_events_oldest_first_ties_in_order_of_arrival(state: str | Path) -> None:
    histories, _ = open_stores(state)
    first, second = 1_700_000_000.1234567, 1_700_000_000.1234569  # distinct doubles
    histories.append(make(("ann", "b", second), ("ann", "a", first), ("bob", "x", 9.0), ("ann", "c", second)))
    assert histories.newest("ann", 10) == make(("ann", "a", first), ("ann", "b", second), ("ann", "c", second))
    assert histories.newest("ann", 2) == make(("ann", "b", second), ("ann", "c", second))
    assert histories.newest("nobody", 10) == []


def test_users_of_the_newest_events_come_first_whatever_their_times(state: str | Path) -> None:
    histories, _ = open_stores(state)
    histories.check()
    histories.append(make(("ann", "b", 9.0), ("é/:7", "a", -1.5), ("bob", "x", 2.0)))
    histories.append(make(("é/:7", "b", -2.5)))
    assert histories.users(10) == ["é/:7", "bob", "ann"]
    assert histories.users(1) == ["é/:7"]
    assert histories.newest("é/:7", 10) == make(("é/:7", "b", -2.5), ("é/:7", "a", -1.5))


def test_a_failed_append_stores_nothing() -> None:
    histories = SqliteHistories()
    with pytest.raises(OverloadedError, match="none of 2 was"):
        histories.append(make(("ann", "a", 1.0), ("ann", None, 2.0)))  # type: ignore[arg-type]
    assert histories.newest("ann", 10) == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(ServingError, match="cannot keep histories there"):
        SqliteHistories(tmp_path / "file")
    with pytest.raises(ServingError, match="cannot keep histories there"):
        SqliteHistories(tmp_path / "file" / "below")


def test_threads_may_write_at_once(state: str | Path) -> None:
    histories, _ = open_stores(state)

    def write(user: int) -> None:
        for number in range(20):
            histories.append(make((f"u{user}", str(number), float(number))))

    threads = [threading.Thread(target=write, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for user in (f"u{number}" for number in range(4)):
        assert histories.newest(user, 50) == make(*((user, str(number), float(number)) for number in range(20)))
    histories.close()
