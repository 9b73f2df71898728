"""The decoder over [BOS, code, ...]: self-attention within one semantic ID, cross-attention to the context.

Shapes: B batch, P targets a row, L levels, Q = P * L decoder positions of a row, W beams, D width, H heads, d head
width, S history length in items.
"""

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from kernels.folded_attention import FoldedContext, attend_folded
from kernels.prefix_attention import KeysValues, attend_to_prefix
from kernels.rms_norm import RMSNorm
from onerec.model.configuration import OneRecConfig
from onerec.model.context import Context
from onerec.model.dropout import Dropout, StochasticDepth, grade_dropout
from onerec.model.layers import CrossAttention, SelfAttention, residual_dtype
from onerec.model.lazy import ContextProcessor, LazyCrossAttention
from onerec.model.moe import feed_forward, make_feed_forward

_Attend = Callable[[Tensor], Tensor]
_MAX_PROGRAMS = 64  # a level, with and without padding, for one request and many, folded and not: torch allows 8


class DecoderCache:
    """Self-attention keys and values of the beams' own tokens, for decoding: no gradient flows through it.

    BOS is the same for all beams of a request and held once. The codes' keys and values stay where they were written;
    when beams follow parents, only the row numbers of their ancestors move. The codes themselves make one number a
    beam, its prefix (see `prefixes.PrefixTree`). I = H * d.
    """

    def __init__(self, num_layers: int) -> None:
        self.prefixes_BW = torch.zeros(0, 0, dtype=torch.long)
        self.bos_BI: list[KeysValues] = []  # a layer
        self.folded: dict[int, FoldedContext] = {}  # of layers whose beams are many, see `fold`
        # A layer, a code: (B * W of its level, I) each.
        self._codes: list[list[KeysValues]] = [[] for _ in range(num_layers)]
        self._ancestors: list[Tensor] = []  # a code: (B * W,) its row that each beam of now descends from

    def append(self, layer: int, keys_BWI: Tensor, values_BWI: Tensor) -> list[KeysValues]:
        """Add one level to a layer and return the codes that each beam has read so far, each (B, W, I)."""
        newest = keys_BWI.detach(), values_BWI.detach()
        if layer == len(self.bos_BI):
            self.bos_BI.append((newest[0][:, 0], newest[1][:, 0]))
            return []
        if layer == 0:
            self._ancestors.append(torch.arange(keys_BWI[..., 0].numel(), device=keys_BWI.device))
        # index_select: up to four times as fast on a CPU as an index in brackets.
        older = [
            (keys_RI.index_select(0, rows_R).view_as(keys_BWI), values_RI.index_select(0, rows_R).view_as(values_BWI))
            for (keys_RI, values_RI), rows_R in zip(self._codes[layer], self._ancestors[:-1], strict=True)
        ]
        self._codes[layer].append((newest[0].flatten(0, 1), newest[1].flatten(0, 1)))
        return [*older, newest]

    def fold(self, layer: int, attention: CrossAttention, context: Context, num_beams: int) -> FoldedContext | None:
        """The context as this layer's beams read it fastest, made once; None where folding it does not pay."""
        if layer not in self.folded:
            if not attention.pays_to_fold(num_beams, context.keys[layer]):
                return None
            self.folded[layer] = attention.fold(context.keys[layer], context.values[layer])
        return self.folded[layer]

    def reorder(self, parents_BW: Tensor) -> None:
        """Let beam w continue what beam `parents_BW[b, w]` of the same request has read."""
        self.prefixes_BW = self.prefixes_BW.gather(1, parents_BW)
        if not self._ancestors:
            return
        num_requests = parents_BW.size(0)
        old_width = len(self._ancestors[-1]) // num_requests
        first_rows_B = torch.arange(num_requests, device=parents_BW.device) * old_width
        rows_R = (parents_BW + first_rows_B[:, None]).flatten()
        self._ancestors = [older_R[rows_R] for older_R in self._ancestors]


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention, feed-forward, each behind an RMSNorm (technical report, section 2.3).

    With a lazy context, cross-attention comes first and has no key and value projections (OneRec-V2, section 2.2.2).
    """

    def __init__(self, config: OneRecConfig, number: int) -> None:
        super().__init__()
        self.lazy = config.context == "lazy"
        self.self_norm = RMSNorm(config.d_model, eps=1e-6)
        self.self_attention = SelfAttention(config)
        self.cross_norm = RMSNorm(config.d_model, eps=1e-6)
        self.cross_attention = LazyCrossAttention(config) if self.lazy else CrossAttention(config)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=1e-6)
        self.feed_forward = make_feed_forward(config, number, in_context=False)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x_BPLD: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, counted_BPL: Tensor | None = None
    ) -> Tensor:
        """All levels of all targets at once.

        `visible` (bool, broadcast to (B, H, P*L, S)) limits the context; `counted_BPL` marks the positions that count
        as load of experts, None for all.
        """

        def own_codes(x_BPLD: Tensor) -> Tensor:
            return self.self_attention(self.self_norm(x_BPLD).flatten(0, 1), causal=True).view_as(x_BPLD)

        def context(x_BPLD: Tensor) -> Tensor:
            return self.cross_attention(self.cross_norm(x_BPLD).flatten(1, 2), keys, values, visible).view_as(x_BPLD)

        for attend in self._ordered(own_codes, context):
            x_BPLD = x_BPLD + self.dropout(attend(x_BPLD))
        return x_BPLD + self.dropout(feed_forward(self.feed_forward, self.feed_forward_norm(x_BPLD), counted_BPL))

    def step(self, x_BWD: Tensor, layer: int, context: Context, cache: DecoderCache) -> Tensor:
        """One level of W beams; the context's keys and values are shared by a request's beams."""

        def own_codes(x_BWD: Tensor) -> Tensor:
            return self._attend_own_codes(self.self_norm(x_BWD), layer, cache)

        def history(x_BWD: Tensor) -> Tensor:
            return self._attend_context(self.cross_norm(x_BWD), layer, context, cache)

        for attend in self._ordered(own_codes, history):
            x_BWD = x_BWD + attend(x_BWD)
        return x_BWD + feed_forward(self.feed_forward, self.feed_forward_norm(x_BWD), None)

    def _ordered(self, own_codes: _Attend, context: _Attend) -> tuple[_Attend, _Attend]:
        return (context, own_codes) if self.lazy else (own_codes, context)

    def _attend_context(self, x_BWD: Tensor, layer: int, context: Context, cache: DecoderCache) -> Tensor:
        attention = self.cross_attention
        if isinstance(attention, CrossAttention):
            folded = cache.fold(layer, attention, context, x_BWD.size(1))
            if folded is not None:
                return attend_folded(x_BWD, folded, context.visible_B11S)
        return attention(x_BWD, context.keys[layer], context.values[layer], context.visible_B11S)

    def _attend_own_codes(self, x_BWD: Tensor, layer: int, cache: DecoderCache) -> Tensor:
        queries, keys, values = self.self_attention.project(x_BWD)
        codes = cache.append(layer, keys, values)
        mixed = attend_to_prefix(queries, cache.bos_BI[layer], codes, self.self_attention.num_heads)
        return self.self_attention.output(mixed)


def _run_blocks(blocks: list[DecoderBlock], x_BWD: Tensor, context: Context, cache: DecoderCache) -> Tensor:
    """One token of each beam through all blocks."""
    for layer, block in enumerate(blocks):
        x_BWD = block.step(x_BWD, layer, context, cache)
    return x_BWD


@cache
def _compiled_run_blocks() -> Callable[..., Tensor]:
    """The same as one program for any number of requests, beams and positions; all models share it."""
    torch._dynamo.config.recompile_limit = max(_MAX_PROGRAMS, torch._dynamo.config.recompile_limit)
    return torch.compile(_run_blocks, dynamic=True)


class Decoder(nn.Module):
    """BOS, codes and level positions in; one hidden state a level out."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.first_rows = [sum(config.codes_per_level[:level]) for level in range(config.num_levels)]
        self.bos = nn.Embedding(1, config.d_model)
        width = config.d_model
        self.context_to_bos = nn.Linear(width, width, bias=False) if config.bos_reads_context else None
        self.codes = nn.Embedding(sum(config.codes_per_level[:-1]) or 1, config.d_model)
        self.levels = nn.Embedding(config.num_levels, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config, number) for number in range(config.num_decoder_layers))
        grade_dropout(self.blocks, config.dropout, config.final_dropout)
        self.depth = StochasticDepth(config.layer_dropout, config.num_decoder_layers)
        self.norm = RMSNorm(config.d_model, eps=1e-6)
        self.context_processor = ContextProcessor(config) if config.context == "lazy" else None
        self.compiled = False  # whether a step's blocks run as one compiled program

    def project_context(self, states_BSD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of the context for every layer."""
        if self.context_processor is not None:
            projected: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = self.context_processor(states_BSD)
            return projected
        pairs = [
            cast(CrossAttention, block.cross_attention).project_context(states_BSD.to(block.cross_norm.weight.dtype))
            for block in self._layers()
        ]
        return tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs)

    def forward(
        self,
        code_rows_BPT: Tensor,
        newest_BPD: Tensor,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        visible: Tensor | None,
        counted_BP: Tensor | None = None,
    ) -> Tensor:
        """Teacher forcing: the first T codes of each target, T < L, as table rows -> states (B, P, T + 1, D).

        `newest_BPD` holds the context state before each target, which BOS may carry (P = 1: the same for all targets);
        `counted_BP` marks the targets whose tokens count as load of experts, None for all.
        """
        num_positions = code_rows_BPT.size(-1) + 1
        bos_BPD = self._bos(newest_BPD).expand(*code_rows_BPT.shape[:2], -1)
        x_BPLD = torch.cat([bos_BPD[:, :, None], self.codes(code_rows_BPT)], dim=2) + self.levels.weight[:num_positions]
        x_BPLD = self.dropout(x_BPLD.to(residual_dtype(self.blocks)))
        counted_BPL = None if counted_BP is None else counted_BP[..., None].expand(x_BPLD.shape[:-1])
        for number, (block, *context) in enumerate(zip(self._layers(), keys, values, strict=True)):
            x_BPLD = self.depth(number, x_BPLD, block(x_BPLD, *context, visible, counted_BPL))
        return self.norm(x_BPLD.to(self.norm.weight.dtype))

    def step(self, codes_BW: Tensor | None, level: int, context: Context, cache: DecoderCache) -> Tensor:
        """State (B, W, D) that predicts `level`, given the codes chosen at the level before it (None at level 0)."""
        if codes_BW is None:
            x_BWD = self._bos(context.newest_BD[:, None])
        else:
            x_BWD = self.codes(codes_BW + self.first_rows[level - 1])
        return self.read_token(x_BWD + self.levels.weight[level], context, cache)

    def read_token(self, x_BWD: Tensor, context: Context, cache: DecoderCache) -> Tensor:
        """States (B, W, D) after one more token of each beam, by its vector."""
        x_BWD = x_BWD.to(residual_dtype(self.blocks))
        run_blocks = _compiled_run_blocks() if self.compiled else _run_blocks
        x_BWD = run_blocks(self._layers(), x_BWD, context, cache)
        return self.norm(x_BWD.to(self.norm.weight.dtype))

    def _bos(self, newest_BPD: Tensor) -> Tensor:
        """Vectors (B, P, D) of BOS."""
        if self.context_to_bos is None:
            return self.bos.weight.expand(*newest_BPD.shape[:2], -1)
        return self.bos.weight + self.context_to_bos(newest_BPD)

    def _layers(self) -> list[DecoderBlock]:
        return cast("list[DecoderBlock]", list(self.blocks))
