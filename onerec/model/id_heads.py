"""Item heads that share nothing with the rest of the model: each a SASRec over item ids alone.

The item head reads the decoder's own context, and vectors that the codes are part of: what one gets wrong, the other
does too. A small encoder with item vectors of its own errs elsewhere, so that their common opinion is better than
either (measured on Amazon-2014 Beauty): as teacher of the code heads, and on what a beam search has found. It costs a
fraction of the context encoder, and a request reads the vectors of its own beams alone.

Shapes: B requests, S history length in items, M targets, N items, W items of a request, E width.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from kernels.catalogue_losses import FactoredLogits
from onerec.model.configuration import OneRecConfig
from onerec.model.repeats import ItemRepeatBias
from onerec.model.sasrec import SasRecNetwork, SasRecShape


class IdHead(nn.Module):
    """Logits of items from the ids of a history."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        width, dropout, length = config.id_head_width, config.id_head_dropout, config.max_history_items
        shape = SasRecShape(width, dropout, length, positions=config.positions)
        self.network = SasRecNetwork(config.num_items, shape)
        self.start = nn.Embedding(1, config.id_head_width)
        self.repeats = ItemRepeatBias() if config.repeat_bias else None

    def states(self, items_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Right-padded item indices -> states (B, 1 + S, E) before the first item and after each of them."""
        start_B1E = self.start(items_BS.new_zeros(len(items_BS), 1))
        if not items_BS.size(1):
            return start_B1E
        return torch.cat([start_B1E, self.network(items_BS, lengths_B).to(start_B1E.dtype)], dim=1)

    def newest_state(self, items_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """The state (B, E) after the whole of each history."""
        return self.states(items_BS, lengths_B)[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B]

    def forward(self, states_ME: Tensor, items_N: Tensor | None, columns_MS: Tensor, seen_MS: Tensor) -> FactoredLogits:
        """States, item indices (None: all in order), and the columns of the items seen -> logits (M, N)."""
        vectors_NE = self.network.items.weight if items_N is None else self.network.items(items_N)
        terms_MS = None if self.repeats is None else self.repeats(seen_MS)
        return FactoredLogits(states_ME, vectors_NE, columns_MS, terms_MS)

    def score(self, states_BE: Tensor, items_BW: Tensor, seen_BW: Tensor) -> Tensor:
        """The same logits of a few items each state, seen ones marked (bool) -> (B, W) in float32."""
        logits_BW = torch.bmm(self.network.items(items_BW), states_BE[:, :, None])[:, :, 0].float()
        return logits_BW if self.repeats is None else logits_BW + self.repeats(seen_BW)


class IdHeads(nn.ModuleList):
    """As many of them as the configuration asks for."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(IdHead(config) for _ in range(config.num_id_heads if config.id_head_width else 0))

    def __iter__(self) -> Iterator[IdHead]:
        return cast(Iterator[IdHead], super().__iter__())
