"""What to call an item when a person reads it."""

from collections.abc import Sequence

import polars as pl


def item_titles(items: pl.DataFrame, text_columns: Sequence[str]) -> list[str]:
    """What to call each item: its first text column, or its id where that is empty."""
    ids = items["item_id"].cast(pl.String)
    if not text_columns:
        return ids.to_list()
    return items[text_columns[0]].fill_null(ids).to_list()
