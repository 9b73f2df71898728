"""Which items a request lets through: some by id, or by the values of their columns.

A text counts as a whole and by its parts between `|`, `,`, `;` and `>`, as catalogues write several genres or a path of
categories into one column.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

_PART = r"[^|,;>]+"


@dataclass(frozen=True)
class Filter:
    """What an item must be to pass.

    Args:
        items: indices of which it must be one; None for any.
        columns: names with values as text, of which its own must be one in each column.
    """

    items: tuple[int, ...] | None = None
    columns: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def allowed(self, items: pl.DataFrame) -> np.ndarray:
        """Which rows of the items table pass, bool (N,)."""
        allowed_N = np.ones(items.height, dtype=bool)
        if self.items is not None:
            allowed_N[:] = False
            allowed_N[list(self.items)] = True
        for name, values in self.columns:
            allowed_N &= items.select(_has_one_of(name, values, items.schema[name])).to_series().to_numpy()
        return allowed_N


def _has_one_of(column: str, values: tuple[str, ...], dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.List):
        fits = pl.col(column).list.eval(pl.element().cast(pl.String).is_in(values)).list.any()
    else:
        text = pl.col(column).cast(pl.String)
        parts = text.str.extract_all(_PART).list.eval(pl.element().str.strip_chars().is_in(values))
        fits = text.is_in(values) | parts.list.any()
    return fits.fill_null(False)
