"""SASRec's network (Kang & McAuley 2018, arXiv 1808.09781, section 3): item vectors, causal attention, a last norm.

Departures from the paper:
1. Positions may be counted from the newest item, as left-padded implementations do in effect.
2. Histories are padded on the right.

Shapes: B batch, S history length in items, D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SasRecBlockKind = Literal["original", "pre_norm"]


@dataclass(frozen=True)
class SasRecShape:
    """Sizes and variants of the network; the paper's are the defaults."""

    width: int
    dropout: float
    max_history_items: int
    num_blocks: int = 2
    num_heads: int = 1
    block: SasRecBlockKind = "original"  # only queries are normalised, and kept in the residual; pre_norm: GPT-like
    positions: Literal["from_end", "from_start"] = "from_end"  # which item has position 0


class SasRecBlock(nn.Module):
    """Causal self-attention and a point-wise feed-forward of the model's own width."""

    def __init__(self, shape: SasRecShape) -> None:
        super().__init__()
        width = shape.width
        self.original = shape.block == "original"
        self.num_heads = shape.num_heads
        self.attention_dropout = shape.dropout
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-8)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(width, width),
            nn.Dropout(shape.dropout),
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        normed = self.attention_norm(x_BSD)
        if self.original:
            x_BSD = normed + self._attend(normed, x_BSD)
            x_BSD = self.feed_forward_norm(x_BSD)
            return x_BSD + self.feed_forward(x_BSD)
        x_BSD = x_BSD + self._attend(normed, normed)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))

    def _attend(self, queries_BSD: Tensor, keys_BSD: Tensor) -> Tensor:
        keys, values = self.key_value(keys_BSD).chunk(2, dim=-1)
        queries, keys, values = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (self.query(queries_BSD), keys, values)
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class SasRecNetwork(nn.Module):
    """Item and position vectors, blocks, a last norm; scores are products with the item vectors."""

    def __init__(self, num_items: int, shape: SasRecShape) -> None:
        super().__init__()
        self.from_end = shape.positions == "from_end"
        self.items = nn.Embedding(num_items, shape.width)
        self.positions = nn.Embedding(shape.max_history_items, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(SasRecBlock(shape) for _ in range(shape.num_blocks))
        self.norm = nn.LayerNorm(shape.width, eps=1e-8)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)

    def forward(self, items_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Right-padded item indices -> states (B, S, D)."""
        positions_S = torch.arange(items_BS.size(1), device=items_BS.device)
        positions = (lengths_B[:, None] - 1 - positions_S).clamp(min=0) if self.from_end else positions_S
        x_BSD = self.dropout(self.items(items_BS) + self.positions(positions))
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.norm(x_BSD)
