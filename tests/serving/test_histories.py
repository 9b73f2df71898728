"""Stored histories: newest events in order, whole or not at all, there after a kill."""

import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onerec.errors import OverloadedError, ServingError
from onerec.serving.histories import SqliteHistories, StoredEvent


def make(*rows: tuple[str, str, float]) -> list[StoredEvent]:
    return [StoredEvent(*row) for row in rows]


def test_newest_items_oldest_first_ties_in_order_of_arrival() -> None:
    histories = SqliteHistories()
    histories.append(make(("ann", "b", 2.0), ("ann", "a", 1.0), ("bob", "x", 9.0), ("ann", "c", 2.0)))
    assert histories.newest("ann", 10) == ["a", "b", "c"]
    assert histories.newest("ann", 2) == ["b", "c"]
    assert histories.newest("nobody", 10) == []


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


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    histories = SqliteHistories(tmp_path / "histories.sqlite")

    def write(user: int) -> None:
        for number in range(20):
            histories.append(make((f"u{user}", str(number), float(number))))

    threads = [threading.Thread(target=write, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(histories.newest(f"u{user}", 50) == [str(number) for number in range(20)] for user in range(4))
    histories.close()


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from onerec.serving.histories import SqliteHistories, StoredEvent\n"
        "histories = SqliteHistories(Path(sys.argv[1]))\n"
        "for number in range(10_000):\n"
        "    histories.append([StoredEvent('ann', str(number), float(number))])\n"
        "    print(number, flush=True)\n"
    )
    path = tmp_path / "histories.sqlite"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    histories = SqliteHistories(path)
    stored = [int(item) for item in histories.newest("ann", 20_000)]
    assert stored[: len(acknowledged)] == acknowledged
    assert len(stored) <= len(acknowledged) + 1
    histories.close()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
