"""What followed what in the training log, as an opinion of its own on what beam search found.

A network spreads what it learns over similar items; that one item came after another seven times it does not keep.
Looked up, as language models look up their training text (kNN-LM, arXiv 1911.00172), it corrects the order of a list.
With the newest items of a history h_0, h_1, …, and n(h, i) the events of i that came g = 1 to `REACH` events after one
of h, each counting `DECAY`^(g - 1):

    m(h, i)    = (n(h, i) + REVERSE n(i, h)) / (the sum of the same over all i + SHRINKAGE)
    opinion(i) = log(FLOOR + sum over b of DECAY^b m(h_b, i))

(The shrinkage makes little of what few events tell: Bell and Koren, ICDM 2007.) The numbers were chosen once for three
sets of different size and protocol, on validation; the only setting is the weight. An item keeps its `MAX_FOLLOWERS`
likeliest followers, so that memory is bounded by 8 bytes for each of them, whatever the length of the log.

Shapes: B requests, W items found a request, R newest items, F followers of one, S history length in items, N items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor

from onerec.data.histories import Histories
from onerec.sparse_rows import largest_of_rows

REACH, DECAY, REVERSE, SHRINKAGE, FLOOR, MAX_FOLLOWERS = 8, 0.85, 0.3, 40.0, 1e-3, 256
_FILE = "transitions.safetensors"


@dataclass(frozen=True)
class Transitions:
    """The followers of each item and their shares m, those of an item side by side in the order of their numbers."""

    weight: float
    """Of this opinion beside the log-probability of an item's codes."""
    starts_N: Tensor
    """Where the followers of each item begin, and after them where the last one's end. (N + 1,), int64."""
    followers: Tensor
    """Item numbers, int32."""
    shares: Tensor
    """float32."""

    @classmethod
    def of(cls, weight: float, training: Histories, num_items: int) -> "Transitions | None":
        """By the events of a training log; None where they are to have no say."""
        if not weight:
            return None
        shares_NN = _likeliest(_shares(training, num_items))
        parts = (shares_NN.indptr, np.int64), (shares_NN.indices, np.int32), (shares_NN.data, np.float32)
        return cls(weight, *(torch.from_numpy(part.astype(kind)) for part, kind in parts))

    def save(self, folder: Path) -> None:
        """Write what `load` reads; the weight is the reader's setting."""
        save_file({"starts": self.starts_N, "followers": self.followers, "shares": self.shares}, folder / _FILE)

    @classmethod
    def load(cls, weight: float, folder: Path) -> "Transitions | None":
        """Read what `save` wrote; None where it is to have no say."""
        if not weight:
            return None
        parts = load_file(folder / _FILE)
        return cls(weight, parts["starts"], parts["followers"], parts["shares"])

    def to(self, device: torch.device) -> "Transitions":
        """The same on a device."""
        return Transitions(self.weight, *(part.to(device) for part in (self.starts_N, self.followers, self.shares)))

    def opinion(self, newest_BR: Tensor, items_BW: Tensor) -> Tensor:
        """Logits (B, W) of items after the newest ones of a history (`newest_items`); -1 stands for none in both."""
        # An item that joined the catalogue later has followed nothing, and nothing it.
        known_BR = (newest_BR >= 0) & (newest_BR < len(self.starts_N) - 1)
        rows_BR = newest_BR.masked_fill(~known_BR, 0)
        begins_BR, ends_BR = self.starts_N[rows_BR], self.starts_N[rows_BR + known_BR]
        width = int((ends_BR - begins_BR).max()) if len(self.followers) else 0
        if not width:
            return torch.full(items_BW.shape, FLOOR, device=items_BW.device).log()
        places_BRF = begins_BR[..., None] + torch.arange(width, device=begins_BR.device)
        real_BRF = places_BRF < ends_BR[..., None]
        places_BRF.clamp_(max=len(self.followers) - 1)
        followers_BRF = self.followers[places_BRF].masked_fill_(~real_BRF, torch.iinfo(torch.int32).max)
        wanted_BRW = items_BW.int()[:, None].expand(-1, newest_BR.size(1), -1).contiguous()
        found_BRW = torch.searchsorted(followers_BRF, wanted_BRW).clamp_(max=width - 1)
        are_there_BRW = followers_BRF.gather(2, found_BRW) == wanted_BRW
        shares_BRW = self.shares[places_BRF.gather(2, found_BRW)] * are_there_BRW
        decays_R = DECAY ** torch.arange(newest_BR.size(1), device=newest_BR.device)
        return (FLOOR + torch.einsum("brw,r->bw", shares_BRW, decays_R)).log()


def newest_items(items_BS: Tensor, lengths_B: Tensor) -> Tensor:
    """The newest items (B, R) of right-padded histories, newest first; -1 where a history has no more."""
    places_BR = lengths_B[:, None] - 1 - torch.arange(REACH, device=lengths_B.device)
    return items_BS.gather(1, places_BR.clamp(min=0)).masked_fill(places_BR < 0, -1)


def _shares(training: Histories, num_items: int) -> sparse.csr_array:
    """m(h, i) of all pairs that met. (N, N)."""
    users, items = training.users_of(np.arange(training.num_events)), np.asarray(training.items)
    counts_NN = sparse.csr_array((num_items, num_items), dtype=np.float64)
    for gap in range(1, min(REACH, len(items) - 1) + 1):
        same_user = users[gap:] == users[:-gap]
        pairs = items[:-gap][same_user], items[gap:][same_user]
        counts_NN += sparse.csr_array((np.full(len(pairs[0]), DECAY ** (gap - 1)), pairs), shape=counts_NN.shape)
    both_ways_NN = (counts_NN + REVERSE * counts_NN.T).tocsr()
    return sparse.diags_array(1 / (both_ways_NN.sum(axis=1) + SHRINKAGE)) @ both_ways_NN


def _likeliest(shares_NN: sparse.csr_array) -> sparse.csr_array:
    """The largest shares of each row, in the order of columns."""
    rows, columns = shares_NN.tocoo().coords
    kept = largest_of_rows(rows, columns, shares_NN.data, MAX_FOLLOWERS)
    likeliest_NN = sparse.csr_array((shares_NN.data[kept], (rows[kept], columns[kept])), shape=shares_NN.shape)
    likeliest_NN.sort_indices()
    return likeliest_NN
