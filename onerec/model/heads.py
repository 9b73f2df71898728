"""Output heads: one over the codes of each level, and an optional one over all items.

Shapes: M rows, L levels, K codes of a level, D width, E width of item vectors, N items, S history length in items, B
requests, W items of each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.catalogue_losses import FactoredLogits
from onerec.model.configuration import OneRecConfig
from onerec.model.prefixes import PrefixHeads, PrefixVectors
from onerec.model.repeats import ItemRepeatBias, RepeatBias, SeenItems


@dataclass(frozen=True)
class Catalogue:
    """What the logits of codes may look up: vectors of prefixes, and the items that the history holds."""

    vectors: PrefixVectors | None
    seen: SeenItems | None


class CodeHeads(nn.Module):
    """For each level a linear map to its codes and, by option, terms that know the prefix's children and repetition."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(config.d_model, codes, bias=False) for codes in config.codes_per_level)
        self.prefixes = PrefixHeads(config) if config.prefix_vectors else None
        self.repeats = RepeatBias(config.num_levels) if config.repeat_bias else None

    def forward(self, states: Tensor, level: int, prefixes: Tensor, catalogue: Catalogue) -> Tensor:
        """States (..., D) that have read `prefixes` (...) of `level` codes -> logits (..., K) in float32."""
        logits: Tensor = self.levels[level](states).float()
        if self.prefixes is not None and catalogue.vectors is not None:
            logits = self.prefixes(logits, states, level, prefixes, catalogue.vectors)
        if self.repeats is not None and catalogue.seen is not None:
            logits = self.repeats(logits, level, prefixes, catalogue.seen)
        return logits


class ItemHead(nn.Module):
    """Logits of every item from a state that has read a history: a dense retrieval head that shares item vectors."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.d_model, config.embedding_dim, bias=False)
        self.repeats = ItemRepeatBias() if config.repeat_bias else None

    def forward(self, states_MD: Tensor, item_vectors: Tensor, columns_MS: Tensor, seen_MS: Tensor) -> FactoredLogits:
        """States (M, D), item vectors, one a row of N, and the rows of the items seen -> logits (M, N)."""
        terms_MS = None if self.repeats is None else self.repeats(seen_MS)
        return FactoredLogits(self.query(states_MD), item_vectors, columns_MS, terms_MS)

    def score(self, states_BD: Tensor, vectors_BWE: Tensor, seen_BW: Tensor) -> Tensor:
        """The same logits of a few items each state, by their vectors, seen ones marked (bool) -> (B, W) in float32."""
        logits_BW = torch.bmm(vectors_BWE, self.query(states_BD)[:, :, None])[:, :, 0].float()
        return logits_BW if self.repeats is None else logits_BW + self.repeats(seen_BW)
