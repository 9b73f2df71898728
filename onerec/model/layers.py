"""Transformer parts shared by context and decoder: attention and the dense feed-forward.

Shapes: B batch, Q queries, S keys, D width, H heads, d head width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.attention import attend, attend_within_rows
from kernels.beam_attention import attend_beams
from kernels.folded_attention import FoldedContext, fold_context, pays_to_fold
from onerec.model.configuration import Activation, OneRecConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu_, "gelu": F.gelu, "swiglu": F.silu}


def split_heads(x_BQD: Tensor, num_heads: int) -> Tensor:
    """(B, Q, H*d) -> (B, H, Q, d)."""
    return x_BQD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x_BHQd: Tensor) -> Tensor:
    """(B, H, Q, d) -> (B, Q, H*d)."""
    return x_BHQd.transpose(1, 2).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.head_dim
        self.query_key_value = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)

    def project(self, x_BQD: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values (B, Q, H*d), on a CPU each in memory of its own: what reads them is faster."""
        matrix = self.query_key_value
        if x_BQD.device.type == "cpu" and isinstance(matrix, nn.Linear):
            return [F.linear(x_BQD, part) for part in matrix.weight.chunk(3)]
        return matrix(x_BQD).chunk(3, dim=-1)

    def forward(self, x_BQD: Tensor, visible: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend within each row; `visible` (bool, broadcast to (B, H, Q, Q)) marks keys a query may see."""
        projected_BQJ = self.query_key_value(x_BQD)
        if causal and visible is None:
            return self.output(attend_within_rows(projected_BQJ, self.num_heads))
        queries, keys, values = (split_heads(part, self.num_heads) for part in projected_BQJ.chunk(3, dim=-1))
        return self.output(merge_heads(attend(queries, keys, values, visible, causal)))


class CrossAttention(nn.Module):
    """Multi-head attention of decoder positions to a context whose keys and values are projected once a request."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)

    def project_context(self, context_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the context, each (B, H, S, d)."""
        keys, values = self.key_value(context_BSD).chunk(2, dim=-1)
        return split_heads(keys, self.num_heads), split_heads(values, self.num_heads)

    def forward(self, x_BQD: Tensor, keys_BHSd: Tensor, values_BHSd: Tensor, visible: Tensor | None) -> Tensor:
        """Attend to the context; `visible` (bool, broadcast to (B, H, Q, S)) marks positions a query may see."""
        queries = split_heads(self.query(x_BQD), self.num_heads)
        mixed = attend_beams(queries, keys_BHSd, values_BHSd, visible)
        return self.output(merge_heads(mixed))

    def pays_to_fold(self, num_beams: int, keys_BHSd: Tensor) -> bool:
        """Whether `fold` makes a step of so many beams faster: on a CPU; elsewhere kernels read the context once."""
        width, (inner, num_positions) = self.query.in_features, (self.query.out_features, keys_BHSd.size(2))
        return keys_BHSd.device.type == "cpu" and pays_to_fold(num_beams, num_positions, width, inner, self.num_heads)

    def fold(self, keys_BHSd: Tensor, values_BHSd: Tensor) -> FoldedContext:
        """The context with this layer's projections folded in, for `attend_folded`."""
        return fold_context(keys_BHSd, values_BHSd, self.query.weight, self.output.weight)


class FeedForward(nn.Module):
    """Position-wise feed-forward: two matrices with ReLU or GELU, or three with SwiGLU."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation) -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        self.activate = _ACTIVATIONS[activation]
        self.inner = nn.Linear(d_model, d_ff * (2 if self.gated else 1), bias=False)
        self.output = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if not self.gated:
            return self.output(self.activate(self.inner(x)))
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.output(self.activate(gate) * value)


def residual_dtype(blocks: nn.ModuleList) -> torch.dtype:
    """Type of the matrix products in the blocks: a residual stream of it is never converted between them."""
    weight = next(blocks.parameters())
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def visible_up_to(lengths_B: Tensor, num_positions: int) -> Tensor:
    """Mask (B, 1, 1, S) that is True on the first `lengths_B` positions of each row."""
    positions_S = torch.arange(num_positions, device=lengths_B.device)
    return (positions_S < lengths_B[:, None])[:, None, None, :]
