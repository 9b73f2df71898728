"""The user's context: history items as vectors, an item-level encoder, and what the decoder attends to.

A history of S items costs S positions, not S * L: an item is the sum of its code vectors and, by option, those of its
pieces and an own one. A lazy context is these vectors with their positions alone; `onerec.model.lazy` makes keys and
values of them.

Shapes: B batch, S history length in items, D width (`embedding_dim` in a lazy context), L levels, H heads, d head
width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from kernels.rms_norm import RMSNorm
from onerec.model.configuration import PAD_TOKEN, OneRecConfig
from onerec.model.dropout import Dropout
from onerec.model.heads import Catalogue
from onerec.model.layers import SelfAttention, residual_dtype, visible_up_to
from onerec.model.moe import feed_forward, make_feed_forward


@dataclass
class ContextOutput(BaseModelOutput):
    """What transformers' generate hands from the encoder to the decoder: the history itself travels with its states."""

    input_ids: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """Keys and values a request holds once, however many beams read them."""

    states_BSD: Tensor
    newest_BD: Tensor  # the state of each request's last real position
    keys: tuple[Tensor, ...]  # one (B, H, S, d) a decoder layer; with a lazy context layers share them
    values: tuple[Tensor, ...]
    visible_B11S: Tensor | None  # None: every position is real
    catalogue: Catalogue

    @property
    def num_requests(self) -> int:
        return self.states_BSD.size(0)


class ItemEmbedding(nn.Module):
    """Item indices to vectors: the sum of its codes' vectors and, by option, of its pieces' and one of its own.

    `piece_rows_NL` holds the pieces of each item, padded with the last row of their table, which no sum includes.
    """

    piece_rows_NL: Tensor

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.codes = nn.Embedding(sum(config.codes_per_level), config.embedding_dim)
        self.items = nn.Embedding(config.num_items, config.embedding_dim) if config.item_embedding else None
        self.pieces: nn.Embedding | None = None
        if config.num_pieces:
            self.pieces = nn.Embedding(config.num_pieces + 1, config.embedding_dim, padding_idx=config.num_pieces)
            none_NL = torch.full((config.num_items, config.num_levels), config.num_pieces)
            self.register_buffer("piece_rows_NL", none_NL)

    def forward(self, items: Tensor, code_rows_NL: Tensor) -> Tensor:
        """Item indices (...) -> (..., D)."""
        vectors = _sum_rows(code_rows_NL[items], self.codes)
        if self.pieces is not None:
            vectors = vectors + _sum_rows(self.piece_rows_NL[items], self.pieces)
        return vectors if self.items is None else vectors + self.items(items)


def _sum_rows(rows: Tensor, table: nn.Embedding) -> Tensor:
    """Rows of a table (..., L) -> the sum of their vectors (..., D)."""
    summed = F.embedding_bag(rows.flatten(0, -2), table.weight, mode="sum", padding_idx=table.padding_idx)
    return summed.unflatten(0, rows.shape[:-1])


class ContextBlock(nn.Module):
    """Pre-RMSNorm self-attention and feed-forward."""

    def __init__(self, config: OneRecConfig, number: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, eps=1e-6)
        self.attention = SelfAttention(config)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=1e-6)
        self.feed_forward = make_feed_forward(config, number, in_context=True)
        self.dropout = Dropout(config.context_dropout)

    def forward(self, x_BSD: Tensor, visible: Tensor | None, causal: bool, counted_BS: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D); `counted_BS` marks the positions that count as load of experts."""
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), visible, causal))
        return x_BSD + self.dropout(feed_forward(self.feed_forward, self.feed_forward_norm(x_BSD), counted_BS))


class ContextEncoder(nn.Module):
    """Item vectors and positions, then pre-RMSNorm attention blocks (technical report, section 2.2), none if lazy.

    A learnt start position stands before the first item, in the place of the report's static pathway, so that a user
    without history has a context too. `code_rows_NL` holds each item's semantic ID as rows of
    the code table, all levels stacked, so that the ID table travels with the weights.
    """

    main_input_name = "input_ids"  # transformers' generate asks the encoder for it
    code_rows_NL: Tensor

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.causal = config.context == "causal"
        self.from_end = config.positions == "from_end"
        self.item_dropout = config.item_dropout
        self.register_buffer("code_rows_NL", torch.zeros(config.num_items, config.num_levels, dtype=torch.long))
        self.embedding = ItemEmbedding(config)
        self.start = nn.Embedding(1, config.embedding_dim)
        self.positions = nn.Embedding(config.max_history_items, config.embedding_dim)
        self.dropout = Dropout(config.context_dropout)
        self.blocks = nn.ModuleList(ContextBlock(config, number) for number in range(config.num_context_layers))
        self.norm = None if config.context == "lazy" else RMSNorm(config.d_model, eps=1e-6)

    def item_vectors(self) -> Tensor:
        """The vector (N, D) of every item in the catalogue."""
        items = torch.arange(self.code_rows_NL.size(0), device=self.code_rows_NL.device)
        return self.embedding(items, self.code_rows_NL)

    def encode(self, items_BS: Tensor, lengths_B: Tensor, counted: Tensor | None = None) -> Tensor:
        """Right-padded item indices -> states (B, 1 + S, D), the start's first; padding reaches no real position.

        `counted` (bool, one or (B, 1)): whether the rows count as load of experts, None for yes.
        """
        x = self._embed(items_BS, lengths_B)
        if self.norm is None:
            return self.dropout(x)
        x = self.dropout(x.to(residual_dtype(self.blocks)))
        real = visible_up_to(lengths_B + 1, x.size(1))
        counted_BS = real[:, 0, 0] if counted is None else real[:, 0, 0] & counted
        for block in self.blocks:
            x = block(x, None if self.causal else real, self.causal, counted_BS)
        return self.norm(x.to(self.norm.weight.dtype))

    def _embed(self, items_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """The start's vector, then those of the items and their positions (B, 1 + S, D)."""
        items_BSD = self.embedding(items_BS, self.code_rows_NL)
        if self.training and self.item_dropout:
            keep_BS = torch.rand(items_BS.shape, device=items_BS.device) >= self.item_dropout
            items_BSD = items_BSD * keep_BS[..., None]
        positions = torch.arange(items_BS.size(1), device=items_BS.device)
        if self.from_end:
            positions = (lengths_B[:, None] - 1 - positions).clamp(min=0)
        items_BSD = items_BSD + self.positions(positions)
        return torch.cat([self.start.weight.expand(items_BS.size(0), 1, -1), items_BSD], dim=1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, counted: Tensor | None = None, **_: Any
    ) -> ContextOutput:
        """The form transformers' generate calls: item index + 1, 0 for padding on the right."""
        mask_BS = input_ids != PAD_TOKEN if attention_mask is None else attention_mask.bool()
        states_BSD = self.encode((input_ids - 1).clamp(min=0), mask_BS.sum(dim=1), counted)
        return ContextOutput(last_hidden_state=states_BSD, input_ids=input_ids)
