"""A process's share of the catalogue: the items whose first codes lie in its range.

Everything below a first code is then one process's: it has all children of the prefixes it holds, so that it makes
their log-probabilities alone, and no sum over a prefix's children crosses processes. Ranges of neighbouring codes keep
the order of the tree: the nodes of a share are neighbours on every level.

Shapes: N items of the catalogue, M of them in the share, K first codes, R processes, E width.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.parallel.processes import Processes
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError, DataError


def cut_codes(num_items_K: np.ndarray, number: int) -> np.ndarray:
    """Bounds (R + 1,) of ranges of codes with about as many items each, by the items of every code.

    Raises:
        ConfigError: a range would be without items.
    """
    ends_K = num_items_K.cumsum()
    wanted = ends_K[-1] * np.arange(1, number) / number
    inner = np.abs(ends_K[:, None] - wanted).argmin(axis=0) + 1
    bounds = np.concatenate([[0], inner, [len(ends_K)]])
    shares = np.diff(np.append(0, ends_K)[bounds])
    if (shares <= 0).any():
        raise ConfigError(
            f"processes: found {number} for a catalogue whose items have {np.count_nonzero(num_items_K)} first codes, "
            f"of which the largest has {num_items_K.max()} of {ends_K[-1]} items; expected items for every process. "
            "Start torchrun with a smaller --nproc-per-node."
        )
    return bounds


@dataclass(frozen=True)
class Share:
    """The items of this process."""

    processes: Processes
    items_M: Tensor
    """Their indices, ascending."""
    num_items: int
    """Of the whole catalogue."""
    first_codes: tuple[int, int]
    """The range of first codes, without its end."""

    @classmethod
    def of(cls, first_codes_N: Tensor, num_codes: int, processes: Processes) -> Self:
        """This process's share of items with these first codes.

        Raises:
            ConfigError: as `cut_codes`.
        """
        bounds = cut_codes(np.bincount(first_codes_N.cpu().numpy(), minlength=num_codes), processes.number)
        first, end = bounds[processes.rank : processes.rank + 2].tolist()
        items_M = ((first_codes_N >= first) & (first_codes_N < end)).nonzero()[:, 0]
        return cls(processes, items_M.to(processes.device), len(first_codes_N), (first, end))

    def rows_of(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Places of items in the share, any where they are another's, and whether they are its own."""
        rows = torch.searchsorted(self.items_M, items).clamp_(max=len(self.items_M) - 1)
        return rows, self.items_M[rows] == items

    def look_up(self, items: Tensor, table_M: Tensor) -> Tensor:
        """The rows of items (...) in a table of which every process has those of its share -> (..., width)."""
        rows, own = self.rows_of(items)
        return self.processes.sum(table_M[rows].masked_fill(~own[..., None], 0))

    def subtree(self, trie: Trie) -> Trie:
        """The items of a tree that are in the share.

        Raises:
            ConfigError: it has none.
        """
        own_N = np.zeros(self.num_items, dtype=bool)
        own_N[self.items_M.cpu().numpy()] = True
        try:
            return trie.restrict(own_N)
        except DataError as error:
            raise ConfigError(
                f"process {self.processes.rank}: found none of its items among those that may be returned, expected "
                "one at least. Start torchrun with a smaller --nproc-per-node."
            ) from error


@dataclass(frozen=True)
class SharedRows:
    """A table of items of which every process has the rows of its share; read by `table[items]`, all together."""

    share: Share
    rows_ME: Tensor

    def __getitem__(self, items: Tensor) -> Tensor:
        return self.share.look_up(items, self.rows_ME)
