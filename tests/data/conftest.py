"""A small set of raw tables that passes every check, to be broken one way at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from onerec.data.settings import FeedbackKind
from onerec.data.tables import Part, Provenance, RawTables

TablesMaker = Callable[..., RawTables]


def _make_tables(**changes: Any) -> RawTables:
    """Users ann (4 events), bob (3) and cy (3) with items a-e; file order is not the order of time."""
    events = pl.DataFrame(
        {
            "user_id": ["cy", "ann", "bob", "ann", "ann", "bob", "cy", "ann", "bob", "cy"],
            "item_id": ["a", "a", "b", "b", "c", "c", "d", "d", "a", "b"],
            "timestamp": [105, 100, 101, 104, 102, 103, 106, 109, 108, 107],
            "rating": [5.0, 4.0, 3.0, 2.0, 1.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        }
    )
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "title": ["red lamp", "blue lamp", "old chair", "new chair", "tall table"],
            "kind": ["lamp", "lamp", "chair", "chair", "table"],
        }
    )
    users = pl.DataFrame({"user_id": ["bob", "ann", "cy", "dan"], "age": [30, 20, 30, 20]})
    tables = RawTables(
        events=events,
        items=items,
        users=users,
        provenance=Provenance("a made-up shop", "free", "nobody", {"events.parquet": "0"}),
        feedback={"rating": FeedbackKind.RATING},
        parts={
            "events": (Part("first.parquet", 4), Part("second.parquet", 6)),
            "items": (Part("items.parquet", 5),),
            "users": (Part("users.parquet", 4),),
        },
    )
    return replace(tables, **changes)


@pytest.fixture
def make_tables() -> TablesMaker:
    return _make_tables


@pytest.fixture
def tables() -> RawTables:
    return _make_tables()
