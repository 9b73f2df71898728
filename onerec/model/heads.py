"""Output heads: one over the codes of each level, and an optional one over all items.

Shapes: M rows, L levels, K codes of a level, D width, N items.
"""

import torch
from torch import Tensor, nn

from onerec.model.configuration import OneRecConfig


class CodeHeads(nn.Module):
    """One linear map to the codes of each level."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(config.d_model, codes, bias=False) for codes in config.codes_per_level)

    def forward(self, states: Tensor, level: int) -> Tensor:
        """States (..., D) of one level -> logits (..., K)."""
        return self.levels[level](states)


class ItemHead(nn.Module):
    """Logits of every item from a state that has read a history: a dense retrieval head that shares item vectors."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.d_model, config.embedding_dim, bias=False)

    def forward(self, states_MD: Tensor, item_vectors: Tensor) -> Tensor:
        """States (M, D) and item vectors, one a row of N -> (M, N)."""
        return torch.matmul(self.query(states_MD), item_vectors.T)
