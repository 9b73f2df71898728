"""The HSTU block (arXiv 2402.17152, section 3, equations 1 to 3): a context without softmax and feed-forward.

    U, V, Q, K = split(SiLU(f1(norm(X))))        (1)
    A V = SiLU(Q K^T + rab) V / n                (2)
    Y = X + f2(norm(A V) * U)                    (3)

Attention is pointwise (section 3.1): weights of a query need not sum to 1, so that its result tells how much there was
to see, not only in what proportion. The gate U stands for a feed-forward. `rab` is a bias by how many places and how
much time lie between two events, one for all heads, in each layer its own. The norm of X, the division by n and the
addition of X come from the authors' code (meta-recsys/generative-recommenders); the equations do without.

Departures:
1. n is the number of positions that a query sees, not the width of the padded batch, on which no state may depend.
2. Norms are RMSNorms, as everywhere in this model; f1 and f2 have no biases.
3. Time is that between the query's own event and the key's. In the authors' code it ends at the event after the
   query's, the one to be predicted, whose moment a request need not tell.
4. A time that is not known has a bias of its own, zero until training has met such. The start has a place and no time;
   older events of further pathways have neither, only what their features say of them.

On a GPU, a causal context without older events goes to the kernel of `kernels.jagged_attention`, which neither reads
padding nor has the table of biases in memory; the results are the same but for rounding.

Shapes: B batch, S history items, C positions of older events, T = C + 1 + S positions, D width, H heads, d head width,
N layers, R real positions of all requests, P distances, I intervals.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.backends import takes_kernel
from kernels.jagged_attention import attend_jagged, interval_buckets
from kernels.rms_norm import RMSNorm
from onerec.model.configuration import OneRecConfig
from onerec.model.dropout import Dropout
from onerec.model.hashed_embedding import ValueTable

_NUM_INTERVALS = 1 + 72  # the first for what is not known, the last from 60 years on

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values to mixed values, each (B, T, H, d)."""


def pointwise_attention(
    queries_BHTd: Tensor, keys_BHTd: Tensor, values_BHTd: Tensor, visible: Tensor, bias: Tensor
) -> Tensor:
    """SiLU attention (B, H, T, d), by the number of positions seen; nothing is learnt of what is not.

    Args:
        visible: bool, broadcast to (B, H, T, T): the keys a query may see, one at least.
        bias: of the same form, added to the products before SiLU.
    """
    scores_BHTT = torch.matmul(queries_BHTd, keys_BHTd.transpose(-1, -2)) + bias.to(queries_BHTd.dtype)
    weights_BHTT = F.silu(scores_BHTT).masked_fill(~visible, 0.0)
    return torch.matmul(weights_BHTT, values_BHTd) / visible.sum(dim=-1, keepdim=True)


def _mix_padded(queries_BTHd: Tensor, keys_BTHd: Tensor, values_BTHd: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
    queries, keys, values = (x.transpose(1, 2) for x in (queries_BTHd, keys_BTHd, values_BTHd))
    return pointwise_attention(queries, keys, values, visible, bias).transpose(1, 2)


def _mix_jagged(
    queries_BTHd: Tensor,
    keys_BTHd: Tensor,
    values_BTHd: Tensor,
    real_BT: Tensor,
    offsets: Tensor,
    place_bias_P: Tensor,
    interval_bias_I: Tensor | None,
    times_R: Tensor | None,
) -> Tensor:
    """The same of the real positions alone, each of which sees those before it; zeros elsewhere."""
    queries, keys, values = (x[real_BT] for x in (queries_BTHd, keys_BTHd, values_BTHd))
    biases = place_bias_P, interval_bias_I, times_R
    mixed_RHd = attend_jagged(queries, keys, values, offsets, real_BT.size(1), "silu", *biases)
    return torch.zeros_like(values_BTHd).index_put((real_BT,), mixed_RHd)


class RelativeBias(nn.Module):
    """What every layer's attention adds for the places and, by option, for the times of two events."""

    def __init__(self, config: OneRecConfig, reads_times: bool) -> None:
        super().__init__()
        self.num_behind = 0 if config.context == "causal" else config.max_history_items
        num_distances = self.num_behind + config.max_history_items + 1
        self.num_layers = config.num_context_layers
        self.places = nn.Embedding(num_distances, config.num_context_layers)
        self.intervals: ValueTable | None = None
        if reads_times:
            self.intervals = ValueTable(_NUM_INTERVALS, config.num_context_layers, num_blank=1)

    def mixers(self, real_BT: Tensor, visible: Tensor | None, num_items: int, times_BS: Tensor | None) -> list[Mix]:
        """The attention of each of N layers.

        Args:
            real_BT: the positions that hold something, in each row the first ones.
            visible: as `pointwise_attention` takes it; None where each sees those before it and itself.
            times_BS: as `forward` takes them.
        """
        if visible is None and takes_kernel("auto", "triton", self.places.weight):
            return self._jagged_mixers(real_BT, times_BS)
        num_positions = real_BT.size(1)
        if visible is None:
            visible = torch.ones(num_positions, num_positions, dtype=torch.bool, device=real_BT.device).tril()
        biases = self(num_items, num_positions - 1 - num_items, times_BS)
        return [partial(_mix_padded, visible=visible, bias=bias) for bias in biases]

    def _jagged_mixers(self, real_BT: Tensor, times_BS: Tensor | None) -> list[Mix]:
        offsets = F.pad(real_BT.sum(dim=1).cumsum(dim=0), (1, 0))
        places_NP = self.places.weight.t().contiguous()
        if self.intervals is None or times_BS is None:
            intervals_NI, times_R = [None] * self.num_layers, None
        else:
            intervals_NI = [*self.intervals.weight.t().contiguous()]
            times_R = F.pad(times_BS, (1, 0), value=math.inf)[real_BT]  # the start has no time
        return [
            partial(
                _mix_jagged,
                real_BT=real_BT,
                offsets=offsets,
                place_bias_P=place_bias_P,
                interval_bias_I=interval_bias_I,
                times_R=times_R,
            )
            for place_bias_P, interval_bias_I in zip(places_NP, intervals_NI, strict=True)
        ]

    def forward(self, num_items: int, num_older: int, times_BS: Tensor | None) -> tuple[Tensor, ...]:
        """For each of N layers (1 or B, 1, T, T); `times_BS` are Unix seconds, NaN where they are not known."""
        places = torch.arange(1 + num_items, device=self.places.weight.device)
        distances = places[:, None] - places + self.num_behind
        bias = self.places(distances.clamp(min=0))[None]  # clamped where a causal context sees nothing
        if self.intervals is not None and times_BS is not None:
            seconds_BSS = times_BS[:, :, None] - times_BS[:, None]
            bias = bias + _pad_front(self.intervals(interval_buckets(seconds_BSS, _NUM_INTERVALS)), 1)
        return _pad_front(bias, num_older)[:, None].unbind(dim=-1)


def _pad_front(pairs: Tensor, num_positions: int) -> Tensor:
    """(B, n, n, N) with zeros for so many further positions before the first."""
    return F.pad(pairs, (0, 0, num_positions, 0, num_positions, 0))


class HstuBlock(nn.Module):
    """Pointwise aggregated attention whose result is normed and gated."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.head_dim
        self.norm = RMSNorm(config.d_model, eps=1e-6)
        self.gate_value_query_key = nn.Linear(config.d_model, 4 * inner, bias=False)
        self.mixed_norm = RMSNorm(inner, eps=1e-6)
        self.output = nn.Linear(inner, config.d_model, bias=False)
        self.dropout = Dropout(config.context_dropout)

    def forward(self, x_BTD: Tensor, mix: Mix) -> Tensor:
        """(B, T, D) -> (B, T, D); `mix` is one of `RelativeBias.mixers`."""
        gates, *others = F.silu(self.gate_value_query_key(self.norm(x_BTD))).chunk(4, dim=-1)
        values, queries, keys = (other.unflatten(-1, (self.num_heads, -1)) for other in others)
        mixed = mix(queries, keys, values).flatten(-2)
        return x_BTD + self.output(self.dropout(self.mixed_norm(mixed) * gates))
