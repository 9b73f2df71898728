"""The user's context: history items as vectors, an item-level encoder, and what the decoder attends to.

A history of S items costs S positions, not S * L: an item is the sum of its code vectors and, by option, those of its
pieces and an own one. A lazy context is these vectors with their positions alone; `onerec.model.lazy` makes keys and
values of them.

Shapes: B batch, S history length in items, C positions of older events (0 without such pathways), D width
(`embedding_dim` in a lazy context), L levels, H heads, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from kernels.rms_norm import RMSNorm
from onerec.data.features import FittedPathways
from onerec.errors import ArtifactError, ConfigError
from onerec.model.configuration import PAD_TOKEN, OneRecConfig
from onerec.model.dropout import Dropout, StochasticDepth, grade_dropout
from onerec.model.heads import Catalogue
from onerec.model.hstu import HstuBlock, RelativeBias
from onerec.model.layers import SelfAttention, residual_dtype, visible_up_to
from onerec.model.moe import feed_forward, make_feed_forward
from onerec.model.pathways import ContextPathways


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
    id_states: tuple[Tensor, ...] = ()  # one (B, E) an id head
    newest_items_BR: Tensor | None = None  # newest first, -1 for none; None where no decoding asks

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

    The blocks are HSTU's by option (`onerec.model.hstu`), with biases that a module of their own holds for all of them.

    A learnt start position stands before the first item, so that a user without history has a context too; the static
    pathway, where there is one, adds to it. `code_rows_NL` holds each item's semantic ID as rows of the code table, all
    levels stacked, so that the ID table travels with the weights.
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
        hstu = config.context_block == "hstu"
        self.blocks = nn.ModuleList(
            HstuBlock(config) if hstu else ContextBlock(config, number) for number in range(config.num_context_layers)
        )
        grade_dropout(self.blocks, config.context_dropout, config.final_dropout)
        self.depth = StochasticDepth(config.layer_dropout, config.num_context_layers)
        self.norm = None if config.context == "lazy" else RMSNorm(config.d_model, eps=1e-6)
        self.pathways = ContextPathways(config) if config.pathways is not None else None
        reads_times = self.pathways is not None and self.pathways.spec.settings.times
        self.bias = RelativeBias(config, reads_times) if hstu else None

    def set_pathways(self, fitted: FittedPathways) -> None:
        """Store what the pathways' features were fitted to.

        Raises:
            ArtifactError: it belongs to another catalogue or specification, or the model has no pathways.
        """
        if self.pathways is None:
            raise ArtifactError("pathways: found fitted features for a model without pathways. Set model.pathways.")
        self.pathways.set_fitted(fitted)

    def item_vectors(self) -> Tensor:
        """The vector (N, D) of every item in the catalogue."""
        items = torch.arange(self.code_rows_NL.size(0), device=self.code_rows_NL.device)
        return self.embedding(items, self.code_rows_NL)

    def encode(
        self,
        items_BS: Tensor,
        lengths_B: Tensor,
        counted: Tensor | None = None,
        pathways: dict[str, Tensor] | None = None,
        moves_BSE: Tensor | None = None,
    ) -> Tensor:
        """Right-padded item indices -> states (B, C + 1 + S, D), the start's at C; padding reaches no real position.

        `counted` (bool, one or (B, 1)): whether the rows count as load of experts, None for yes. `pathways` are the
        inputs of a model that has any; older events take the first C positions. `moves_BSE` are added to the vectors
        of the items.
        """
        x = self._embed(items_BS, lengths_B, pathways, moves_BSE)
        if self.norm is None:
            return self.dropout(x)
        x = self.dropout(x.to(residual_dtype(self.blocks)))
        real_BS = self.real_positions(visible_up_to(lengths_B, items_BS.size(1))[:, 0, 0], pathways)
        counted_BS = real_BS if counted is None else real_BS & counted
        visible, causal = self._visible(real_BS, real_BS.size(1) - 1 - items_BS.size(1))
        if self.bias is not None:
            times_BS = None if pathways is None else pathways.get("times")
            mixers = self.bias.mixers(real_BS, visible, items_BS.size(1), times_BS)
            for number, (block, mix) in enumerate(zip(self.blocks, mixers, strict=True)):
                x = self.depth(number, x, block(x, mix))
        else:
            for number, block in enumerate(self.blocks):
                x = self.depth(number, x, block(x, visible, causal, counted_BS))
        return self.norm(x.to(self.norm.weight.dtype))

    def real_positions(self, mask_BS: Tensor, pathways: dict[str, Tensor] | None) -> Tensor:
        """Which positions (B, C + 1 + S) hold something, given which of the S items do."""
        with_start_BS = F.pad(mask_BS, (1, 0), value=True)
        if self.pathways is None or pathways is None:
            return with_start_BS
        return torch.cat([*self.pathways.real_older(pathways), with_start_BS], dim=1)

    def _visible(self, real_BS: Tensor, num_older: int) -> tuple[Tensor | None, bool]:
        """What attention may read, and whether it is causal without a mask.

        All positions see older events, which see each other, and in a causal context themselves and what came before.
        """
        if not self.causal:
            return real_BS[:, None, None], False
        if not num_older:
            return None, True
        positions = torch.arange(real_BS.size(1), device=real_BS.device)
        before_SS = (positions <= positions[:, None]) | (positions < num_older)
        itself_SS = positions == positions[:, None]  # so that padding, too, sees something
        return ((real_BS[:, None] & before_SS) | itself_SS)[:, None], False

    def _embed(
        self, items_BS: Tensor, lengths_B: Tensor, pathways: dict[str, Tensor] | None, moves_BSE: Tensor | None
    ) -> Tensor:
        """Older events, the start's vector, then those of the items and their positions (B, C + 1 + S, D)."""
        items_BSD = self.embedding(items_BS, self.code_rows_NL)
        if moves_BSE is not None:
            items_BSD = items_BSD + moves_BSE
        start_B1D = self.start.weight.expand(items_BS.size(0), 1, -1)
        older: list[Tensor] = []
        if self.pathways is not None:
            if pathways is None:
                raise ConfigError("a model with pathways: found no inputs for them, expected those of its reader.")
            items_BSD = self.pathways.add_features(items_BSD, items_BS, pathways)
            start_B1D = self.pathways.add_static(start_B1D, pathways)
            older = self.pathways.older(lambda items: self.embedding(items, self.code_rows_NL), pathways)
        if self.training and self.item_dropout:
            keep_BS = torch.rand(items_BS.shape, device=items_BS.device) >= self.item_dropout
            items_BSD = items_BSD * keep_BS[..., None]
        positions = torch.arange(items_BS.size(1), device=items_BS.device)
        if self.from_end:
            positions = (lengths_B[:, None] - 1 - positions).clamp(min=0)
        items_BSD = items_BSD + self.positions(positions)
        return torch.cat([*older, start_B1D, items_BSD], dim=1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        counted: Tensor | None = None,
        pathways: dict[str, Tensor] | None = None,
        **_: Any,
    ) -> ContextOutput:
        """The form transformers' generate calls: item index + 1, 0 for padding on the right."""
        mask_BS = input_ids != PAD_TOKEN if attention_mask is None else attention_mask.bool()
        states_BSD = self.encode((input_ids - 1).clamp(min=0), mask_BS.sum(dim=1), counted, pathways)
        return ContextOutput(last_hidden_state=states_BSD, input_ids=input_ids)
