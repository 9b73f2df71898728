"""Stored changes of the catalogue: the last one of each item, whole, there after a kill."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onerec.errors import OverloadedError
from onerec.serving.changes import ItemChange, SqliteChanges, SupersededError
from onerec.serving.histories import StoredEvent
from onerec.serving.stores import open_stores
from tokenizer.assignment import NewId

FULL = ItemChange(
    "é/7", {"title": "Nová", "year": 1999, "rated": True, "genre": None}, (0.5, -1.0), False, NewId((3, 1), 2), "h"
)


def test_a_change_comes_back_as_it_was_and_the_last_one_counts(state: str | Path) -> None:
    _, store = open_stores(state)
    first, last = ItemChange("a", {"title": "A"}), ItemChange("a", {"title": "B"}, removed=True)
    store.write([first, FULL])
    store.write([last])
    assert store.read() == [last, FULL]  # in the order of the first change
    assert (store.find("a"), store.find("é/7"), store.find("nothing")) == (last, FULL, None)


def test_what_one_server_writes_another_reads_on_from_where_it_was(redis_server: Any) -> None:
    (_, mine), (_, others) = (open_stores(redis_server.address) for _ in range(2))
    assert (mine.version(), mine.newer(0)) == (0, [])
    first, again = ItemChange("a", {"title": "A"}), ItemChange("a", removed=True)
    assert mine.write([first, FULL], after=0) == others.version() == 1
    assert others.newer(0) == [first, FULL]
    assert others.write([again], after=1) == 2
    assert (mine.newer(1), mine.newer(2)) == ([again], [])
    assert mine.newer(0) == [again, FULL]  # in the order of the first change
    with pytest.raises(SupersededError):
        mine.write([first, ItemChange("b")], after=1)
    assert (others.version(), others.read()) == (2, [again, FULL])
    assert others.write([first]) == 3  # after any


def test_changes_and_histories_share_a_place(state: str | Path) -> None:
    histories, changes = open_stores(state)
    histories.append([StoredEvent("ann", "a", 1.0)])
    changes.write([FULL])
    histories.close()
    changes.close()
    histories, changes = open_stores(state)
    assert histories.newest("ann", 5) == [StoredEvent("ann", "a", 1.0)]
    assert changes.read() == [FULL]


def test_what_cannot_be_written_is_said_and_nothing_of_it_is_stored() -> None:
    store = SqliteChanges()
    with pytest.raises(OverloadedError, match="nothing has changed"):
        store.write([FULL, ItemChange(None)])  # type: ignore[arg-type]
    assert store.read() == []


def test_what_was_acknowledged_is_there_after_a_kill(state: str | Path) -> None:
    program = (
        "import sys\n"
        "from onerec.serving.changes import ItemChange\n"
        "from onerec.serving.histories import StoredEvent\n"
        "from onerec.serving.stores import open_stores\n"
        "histories, changes = open_stores(sys.argv[1])\n"
        "for number in range(10_000):\n"
        "    changes.write([ItemChange(str(number), removed=number % 2 == 0)])\n"
        "    histories.append([StoredEvent('ann', str(number), float(number))])\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(state)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    histories, changes = open_stores(state)
    events, stored = histories.newest("ann", 20_000), changes.read()
    assert [int(event.item_id) for event in events[: len(acknowledged)]] == acknowledged
    assert [int(change.item_id) for change in stored[: len(acknowledged)]] == acknowledged
    assert len(acknowledged) <= len(events) <= len(stored) <= len(acknowledged) + 1
    assert all(change.removed == (int(change.item_id) % 2 == 0) for change in stored)
    if isinstance(state, Path):
        assert sqlite3.connect(state).execute("PRAGMA integrity_check").fetchone() == ("ok",)
