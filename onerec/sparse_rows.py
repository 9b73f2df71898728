"""Choices among the entries of a sparse matrix, row by row."""

import numpy as np


def largest_of_rows(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest values of each row, of equal ones the lower column first.

    Args:
        rows, columns, values: the entries, in any order. (E,) each.
    """
    order = np.lexsort((columns, -values, rows))
    sorted_rows = rows[order]
    first_of_row = np.searchsorted(sorted_rows, sorted_rows, side="left")
    return order[np.arange(len(order)) - first_of_row < count]
