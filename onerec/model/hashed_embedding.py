"""Vectors of a category with any number of values in bounded memory: own rows for frequent values, shared ones else.

As in LEAF: a frequent value has a row of its own; every other is hashed into a small shared table several times, and
the mean of those rows is its vector, so that two values seldom share all of them. Where all values of training have
own rows there is no shared table, and a value that training has not seen is the row `unknown`.

Departure: which values are frequent is counted once, over the training events, not by an online sketch.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from onerec.data.features import MISSING_KEY
from onerec.model.initialisation import EMBEDDING_STD

_MISSING, _UNKNOWN, _FIRST_OWN = 0, 1, 2
# Odd constants of splitmix64 (Steele et al. 2014) as signed integers: the high bits of a product are the hash.
_GOLDEN, _MIX = -7046029254386353131, -4658895280553007687
_HIGH_BITS = 0x7FFFFFFF


class ValueTable(nn.Embedding):
    """Vectors of values; the first `num_blank` rows stand for what is not known and start at zero: they add nothing."""

    def __init__(self, num_rows: int, width: int, num_blank: int) -> None:
        self.num_blank = num_blank
        super().__init__(num_rows, width)

    def start(self) -> None:
        """Draw the other rows."""
        rows = EMBEDDING_STD * torch.randn_like(self.weight)
        rows[: self.num_blank] = 0
        initialization.copy_(self.weight, rows)


class HashedEmbedding(nn.Module):
    """64-bit keys to vectors; a missing value and an unknown one are zero until training has met such."""

    own_keys: Tensor

    def __init__(self, num_own: int, num_shared: int, num_hashes: int, width: int) -> None:
        super().__init__()
        self.num_hashes = num_hashes
        self.register_buffer("own_keys", torch.zeros(num_own, dtype=torch.int64))  # ascending
        self.own = ValueTable(_FIRST_OWN + num_own, width, num_blank=_FIRST_OWN)
        self.shared = nn.Embedding(num_shared, width) if num_shared else None

    def forward(self, keys: Tensor) -> Tensor:
        """Keys (...), 0 where missing -> (..., width)."""
        rows = self._own_rows(keys)
        vectors = self.own(rows)
        if self.shared is None:
            return vectors
        hashed = self.shared(self._shared_rows(keys)).mean(dim=-2)
        return torch.where((rows == _UNKNOWN)[..., None], hashed, vectors)

    def _own_rows(self, keys: Tensor) -> Tensor:
        missing = torch.where(keys == MISSING_KEY, _MISSING, _UNKNOWN)
        if not len(self.own_keys):
            return missing
        places = torch.searchsorted(self.own_keys, keys.contiguous()).clamp(max=len(self.own_keys) - 1)
        return torch.where(self.own_keys[places] == keys, places + _FIRST_OWN, missing)

    def _shared_rows(self, keys: Tensor) -> Tensor:
        """(..., hashes): multiply-shift hashes, each by a multiplier of its own."""
        assert self.shared is not None
        numbers = torch.arange(1, self.num_hashes + 1, device=keys.device)
        multipliers = (numbers * _GOLDEN ^ _MIX) | 1
        products = keys[..., None] * multipliers  # wraps around, as it should
        return (products >> 32 & _HIGH_BITS) % self.shared.num_embeddings
