"""The lazy context of OneRec-V2 (arXiv 2508.20900, sections 2.2.1 and 2.2.2): keys and values without an encoder.

Each context position becomes S_kv * L_kv * G_kv * d numbers, cut into chunks, of which an RMSNorm makes the keys and
values of L_kv sets. Decoder blocks attend to them without a projection of their own; with the defaults S_kv = L_kv = 1
all layers read one and the same tensor, as keys and as values. No position sees another, so a target of a pass over a
whole history reads what it would read alone: the positions before it.

Departures:
1. A position is an item's embedding and its place in the history through one matrix; the report's further pathways are
   options (`onerec.model.pathways`).
2. The loss is the sum over levels, as in the technical report, where V2 takes the mean; all levels share the last norm.
3. The auxiliary item head, which the report has not, reads the decoder's state at BOS: the first that has seen the
   history, since no context position has.

Shapes: B batch, S context positions, Q queries, D width, H query heads, G heads of keys and values, d head width.
"""

import torch
from torch import Tensor, nn

from kernels.beam_attention import attend_beams
from kernels.rms_norm import RMSNorm
from onerec.model.configuration import OneRecConfig
from onerec.model.layers import merge_heads, split_heads


class ContextProcessor(nn.Module):
    """Context positions to the keys and values that decoder layers share."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        num_layers = config.num_decoder_layers
        self.set_of_layer = [layer * config.num_kv_layers // num_layers for layer in range(num_layers)]
        self.num_heads = config.num_kv_heads
        self.split = 2 if config.separate_values else 1  # S_kv
        num_chunks, width = self.split * config.num_kv_layers, config.num_kv_heads * config.head_dim
        self.projection = nn.Linear(config.embedding_dim, num_chunks * width, bias=False)
        self.norms = nn.ModuleList(RMSNorm(width, eps=1e-6) for _ in range(num_chunks))

    def forward(self, states: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, S, embedding width) -> keys and values (B, G, S, d) of each decoder layer, the same tensors for many."""
        chunks = self.projection(states.to(next(self.norms.parameters()).dtype)).chunk(len(self.norms), dim=-1)
        sets = [split_heads(norm(chunk), self.num_heads) for norm, chunk in zip(self.norms, chunks, strict=True)]
        keys = tuple(sets[self.split * number] for number in self.set_of_layer)
        return keys, tuple(sets[self.split * number + self.split - 1] for number in self.set_of_layer)


class LazyCrossAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) to ready keys and values."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_queries_of_key = config.num_heads // config.num_kv_heads
        inner = config.num_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, x_BQD: Tensor, keys_BGSd: Tensor, values_BGSd: Tensor, visible: Tensor | None) -> Tensor:
        """Attend to the context; `visible` (bool, broadcast to (B, H, Q, S)) marks positions a query may see.

        The heads that share a key stand as further queries of it, so that no key is copied.
        """
        if visible is not None and visible.size(-2) > 1:
            visible = torch.cat([visible] * self.num_queries_of_key, dim=-2)
        queries_BHQd = split_heads(self.query(x_BQD), self.num_heads)
        queries_BGqd = queries_BHQd.unflatten(1, (-1, self.num_queries_of_key)).flatten(2, 3)
        mixed_BGqd = attend_beams(queries_BGqd, keys_BGSd, values_BGSd, visible)
        return self.output(merge_heads(mixed_BGqd.unflatten(2, (self.num_queries_of_key, -1)).flatten(1, 2)))
