"""The HSTU block (arXiv 2402.17152, section 3.1, equations 1 to 3): a context without softmax and feed-forward.

    U, V, Q, K = split(SiLU(f1(norm(X))))        (1)
    A V = SiLU(Q K^T + rab) V / n                (2)
    Y = X + f2(norm(A V) * U)                    (3)

Attention is pointwise: weights of a query need not sum to 1, so that its result tells how much there was to see, not
only in what proportion. The gate U stands for a feed-forward. `rab` is a bias by how many places and how much time lie
between two events, one for all heads, in each layer its own.

Departures:
1. n is the number of positions that a query sees, not the width of the padded batch, on which no state may depend.
2. Norms are RMSNorms, as everywhere in this model; f1 and f2 have no biases.
3. Time is that between the query's own event and the key's. In the authors' code it ends at the event after the
   query's, the one to be predicted, whose moment a request need not tell.
4. A time that is not known has a bias of its own, zero until training has met such. The start has a place and no time;
   older events of further pathways have neither, only what their features say of them.

Shapes: B batch, S history items, C positions of older events, T = C + 1 + S positions, D width, H heads, d head width,
N layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.rms_norm import RMSNorm
from onerec.model.configuration import OneRecConfig
from onerec.model.dropout import Dropout
from onerec.model.hashed_embedding import ValueTable
from onerec.model.layers import merge_heads, split_heads

_UNKNOWN = 0
_LOG_STEP = 0.301  # each bucket is e^0.301 = 1.35 times as long as the one before it (the authors' code)
_NUM_BUCKETS = 72  # the last one from 60 years on


def interval_buckets(times_BS: Tensor) -> Tensor:
    """Buckets (B, S, S) of the seconds between two times: from 1 on, by their logarithm; 0 where one is NaN."""
    seconds_BSS = (times_BS[:, :, None] - times_BS[:, None, :]).abs()
    logarithms_BSS = seconds_BSS.nan_to_num(nan=1.0).clamp(min=1.0).log()
    buckets_BSS = 1 + (logarithms_BSS / _LOG_STEP).long().clamp(max=_NUM_BUCKETS - 1)
    return torch.where(seconds_BSS.isnan(), _UNKNOWN, buckets_BSS)


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


class RelativeBias(nn.Module):
    """What every layer's attention adds for the places and, by option, for the times of two events."""

    def __init__(self, config: OneRecConfig, reads_times: bool) -> None:
        super().__init__()
        self.num_behind = 0 if config.context == "causal" else config.max_history_items
        num_distances = self.num_behind + config.max_history_items + 1
        self.places = nn.Embedding(num_distances, config.num_context_layers)
        self.intervals: ValueTable | None = None
        if reads_times:
            self.intervals = ValueTable(1 + _NUM_BUCKETS, config.num_context_layers, num_blank=1)

    def forward(self, num_items: int, num_older: int, times_BS: Tensor | None) -> tuple[Tensor, ...]:
        """For each of N layers (1 or B, 1, T, T); `times_BS` are Unix seconds, NaN where they are not known."""
        places = torch.arange(1 + num_items, device=self.places.weight.device)
        distances = places[:, None] - places + self.num_behind
        bias = self.places(distances.clamp(min=0))[None]  # clamped where a causal context sees nothing
        if self.intervals is not None and times_BS is not None:
            bias = bias + _pad_front(self.intervals(interval_buckets(times_BS)), 1)
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

    def forward(self, x_BTD: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); `visible` and `bias` as in `pointwise_attention`."""
        gates, *others = F.silu(self.gate_value_query_key(self.norm(x_BTD))).chunk(4, dim=-1)
        values, queries, keys = (split_heads(other, self.num_heads) for other in others)
        mixed = merge_heads(pointwise_attention(queries, keys, values, visible, bias))
        return x_BTD + self.output(self.dropout(self.mixed_norm(mixed) * gates))
