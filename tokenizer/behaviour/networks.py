"""The QFormer that reads an item's token vectors, and the decoder that must tell the item's text from what it kept.

Legend: B items, T tokens, Q queries, D width, W words of a text, V words of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _block(width: int, num_heads: int) -> nn.TransformerDecoderLayer:
    """Self-attention, cross-attention and a feed-forward, each behind a norm."""
    return nn.TransformerDecoderLayer(
        width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


class QFormer(nn.Module):
    """Learnt queries that attend to each other and to an item's tokens (BLIP-2's QFormer, arXiv 2301.12597).

    Args:
        token_widths: kind of token -> width of its vectors; each kind has its own projection.
    """

    def __init__(
        self, token_widths: Mapping[str, int], width: int, num_queries: int, num_layers: int, num_heads: int
    ) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {
            "token_widths": dict(token_widths),
            "width": width,
            "num_queries": num_queries,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        self.inputs = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(wide, width), nn.LayerNorm(width)) for name, wide in token_widths.items()}
        )
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.blocks = nn.ModuleList(_block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Padded tokens by kind, (B, T, D) and bool (B, T) where they are real -> (B, Q, D).

        Every item needs a real token.
        """
        read_BTD = torch.cat([self.inputs[name](vectors) for name, (vectors, _) in tokens.items()], dim=1)
        padding_BT = ~torch.cat([real for _, real in tokens.values()], dim=1)
        x_BQD = self.queries.expand(len(read_BTD), -1, -1)
        for block in self.blocks:
            x_BQD = block(x_BQD, read_BTD, memory_key_padding_mask=padding_BT)
        return self.norm(x_BQD)


class CaptionDecoder(nn.Module):
    """A small causal language model over one vocabulary, which sees an item by its query vectors alone."""

    def __init__(self, num_words: int, max_words: int, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.num_words = num_words
        self.words = nn.Embedding(num_words + 1, width)  # the last one opens a text
        self.positions = nn.Embedding(max_words, width)
        self.blocks = nn.ModuleList(_block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=width**-0.5)
        nn.init.normal_(self.positions.weight, std=width**-0.5)

    def forward(self, words_BW: Tensor, item_BQD: Tensor) -> Tensor:
        """Logits (B, W, V) of every word from those before it; the words that follow are not seen."""
        opening_B1 = torch.full_like(words_BW[:, :1], self.num_words)
        x_BWD = self.words(torch.cat([opening_B1, words_BW[:, :-1]], dim=1))
        x_BWD = x_BWD + self.positions(torch.arange(words_BW.shape[1], device=words_BW.device))
        causal_WW = nn.Transformer.generate_square_subsequent_mask(words_BW.shape[1], device=words_BW.device)
        for block in self.blocks:
            x_BWD = block(x_BWD, item_BQD, tgt_mask=causal_WW, tgt_is_causal=True)
        return self.norm(x_BWD) @ self.words.weight[: self.num_words].T
