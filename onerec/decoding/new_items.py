"""Places of a list that are kept for new items: those that no training event holds, and that a model hardly proposes.

With n places kept, a list of k holds the k items of highest score of which at least n are new, as far as there are n
that are allowed. What the search of the whole catalogue found is joined by the best of a second search, over the tree
of the new items alone; as scores are not renormalised over the items that exist, those of both searches compare.

Shapes: B requests, W items found a request, V items of the second search, K places of a list, N items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onerec.decoding.beam import BeamResult
from onerec.decoding.trie import Trie

_FILE = "trained_items.npy"


@dataclass(frozen=True)
class NewItemSlots:
    """How many places of each list are kept, one at least, and for which items."""

    count: int
    trained_N: np.ndarray
    """Whether a training event holds an item; items of higher numbers joined the catalogue later and are new."""

    @classmethod
    def of(cls, count: int, training_counts_N: np.ndarray) -> "NewItemSlots | None":
        """By the training events of each item; None where no place is to be kept."""
        return cls(count, training_counts_N > 0) if count else None

    def save(self, folder: Path) -> None:
        """Write which items are not new; the number of places is the reader's setting."""
        np.save(folder / _FILE, self.trained_N, allow_pickle=False)

    @classmethod
    def load(cls, count: int, folder: Path) -> "NewItemSlots | None":
        """Read what `save` wrote; None where no place is to be kept."""
        return cls(count, np.load(folder / _FILE, allow_pickle=False)) if count else None

    def tree_of(self, trie: Trie) -> Trie | None:
        """The new items of a tree; None where it holds none."""
        is_new_N = self._is_new(np.arange(trie.num_items))
        ranks = trie.ranks_of(torch.from_numpy(np.flatnonzero(is_new_N)).to(trie.device))
        return trie.restrict(is_new_N) if (ranks >= 0).any() else None

    def keep(self, found: BeamResult, k: int) -> BeamResult:
        """The first `k` items of which at least `count` are new, as far as that many were found; their order stays."""
        is_found_BW = found.items_BK >= 0
        is_new_BW = torch.from_numpy(self._is_new(found.items_BK.cpu().numpy())).to(is_found_BW.device) & is_found_BW
        kept_BW = is_new_BW & (is_new_BW.cumsum(dim=1) <= min(self.count, k))
        others_BW = is_found_BW & ~kept_BW
        kept_BW = kept_BW | (others_BW & (others_BW.cumsum(dim=1) <= k - kept_BW.sum(dim=1, keepdim=True)))
        order_BK = kept_BW.int().argsort(dim=1, descending=True, stable=True)[:, :k]
        missing_BK = ~kept_BW.gather(1, order_BK)
        items_BK = found.items_BK.gather(1, order_BK).masked_fill_(missing_BK, -1)
        return BeamResult(items_BK, found.scores_BK.gather(1, order_BK).masked_fill_(missing_BK, float("-inf")))

    def _is_new(self, items: np.ndarray) -> np.ndarray:
        num_known = len(self.trained_N)
        return (items >= num_known) | ~self.trained_N[np.minimum(items, num_known - 1)]


def join(found: BeamResult, other: BeamResult) -> BeamResult:
    """What two searches found, best first and each item once (B, W + V); of equal scores the first search's leads."""
    repeated_BV = (other.items_BK[:, :, None] == found.items_BK[:, None, :]).any(dim=-1)
    items_BX = torch.cat([found.items_BK, other.items_BK.masked_fill(repeated_BV, -1)], dim=1)
    scores_BX = torch.cat([found.scores_BK, other.scores_BK.masked_fill(repeated_BV, float("-inf"))], dim=1)
    scores_BX, order_BX = scores_BX.sort(dim=1, descending=True, stable=True)
    return BeamResult(items_BX.gather(1, order_BX), scores_BX)
