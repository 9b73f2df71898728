"""The pure parts of `benchmarks/item_vectors.py`."""

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.item_vectors import first_users, next_item_agreement
from onerec.data.histories import Histories, Split


def test_agreement_worked_by_hand() -> None:
    """User 1: train 0, next 1 (codes 00, 01); user 2: train 2, next 3 (both 10); user 3 has no next, 4 no train."""
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])
    train, validation, test = Split.TRAIN, Split.VALIDATION, Split.TEST
    splits = np.array([train, train, validation, test, train, validation, test, train, validation], dtype=np.uint8)
    items = np.array([3, 0, 1, 2, 2, 3, 0, 1, 1], dtype=np.int32)
    histories = Histories(np.array([0, 4, 7, 8, 9]), items, np.arange(9), splits)
    found = next_item_agreement(codes, histories, seed=0)
    assert (found["same_codes"], found["users_compared"]) == ([1.0, 0.5], 2)
    assert found["same_codes_by_chance"][0] in (0.0, 1.0)  # two next items: in their places, or exchanged


def test_the_first_users_and_what_they_met(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    events = pl.DataFrame(
        {"user": [0, 0, 1, 2], "item": [3, 1, 3, 0], "position": [0, 1, 0, 0]}, schema_overrides={"item": pl.Int32}
    )
    events.write_parquet(source / "interactions.parquet")
    pl.DataFrame({"item": [0, 1, 2, 3], "title": ["a", "b", "c", "d"]}).write_parquet(source / "items.parquet")
    target = first_users(source, tmp_path / "target", 2)
    assert pl.read_parquet(target / "items.parquet").to_dict(as_series=False) == {"item": [0, 1], "title": ["b", "d"]}
    kept = pl.read_parquet(target / "interactions.parquet")
    assert kept.select("user", "item", "position").rows() == [(0, 1, 0), (0, 0, 1), (1, 1, 0)]
