"""What the model learns of repetition itself: how likely an item is that the history holds already.

Most catalogues are bought once, songs and snacks again and again. Similar items being likely, the items seen are the
likeliest of all to a model that cannot look them up, and fill its lists. Here each level has one learnt weight, times
the share of the items below a code that the history holds: at the last level a weight for "seen or not".

Shapes: ... leading dimensions that broadcast with those of the prefixes, S history length in items, K codes, L levels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NATS = 10.0  # of a weight of 1, so that the optimizer's small steps reach far enough


@dataclass(frozen=True)
class SeenItems:
    """The items of a history, in each place: the item, the prefix before each level's code, the code, and its share."""

    items: Tensor  # (..., S), -1 where no item is seen
    prefixes: tuple[Tensor, ...]  # (..., S) a level
    codes: Tensor  # (..., S, L)
    shares: Tensor  # (..., S, L) one of how many items below that code, 0 where no item is seen


def first_occurrences(items_BS: Tensor) -> Tensor:
    """Mask (B, S) of the places at which an item stands for the first time in its row, so that none counts twice."""
    repeats_BSS = (items_BS[:, :, None] == items_BS[:, None, :]).tril(-1)
    return ~repeats_BSS.any(dim=-1)


class RepeatBias(nn.Module):
    """A term of each code's logit for the items below it that the history holds."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.weights_L = nn.Parameter(torch.zeros(num_levels))

    def forward(self, logits: Tensor, level: int, prefixes: Tensor, seen: SeenItems) -> Tensor:
        """Add to logits (..., K), in place, what follows from the items seen below prefixes (...) of `level` codes."""
        below = seen.prefixes[level] == prefixes[..., None]  # (..., S)
        shares = (seen.shares[..., level] * below).float()
        return logits.scatter_add_(-1, seen.codes[..., level].expand_as(shares), _NATS * self.weights_L[level] * shares)


class ItemRepeatBias(nn.Module):
    """The same for the logits of single items."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, seen: Tensor) -> Tensor:
        """What the logit of an item gains where it was seen (bool, any shape)."""
        return _NATS * self.weight * seen
