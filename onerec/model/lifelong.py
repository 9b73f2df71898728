"""A few learnt queries read any number of positions (technical report, arXiv 2506.13695, section 2.2: a QFormer).

Assumed, where our reading of the report leaves it open: a block is cross-attention and a feed-forward, each behind an
RMSNorm, without self-attention between the queries.

Shapes: B batch, R positions read, Q queries, D width.
"""

from torch import Tensor, nn

from kernels.rms_norm import RMSNorm
from onerec.model.configuration import OneRecConfig
from onerec.model.layers import CrossAttention, FeedForward


class QueryBlock(nn.Module):
    """Queries attend to what is read and go through a feed-forward."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.cross_norm = RMSNorm(config.d_model, eps=1e-6)
        self.cross_attention = CrossAttention(config)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=1e-6)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, config.activation)

    def forward(self, x_BQD: Tensor, read_BRD: Tensor, visible_B11R: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, D)."""
        keys, values = self.cross_attention.project_context(read_BRD)
        x_BQD = x_BQD + self.cross_attention(self.cross_norm(x_BQD), keys, values, visible_B11R)
        return x_BQD + self.feed_forward(self.feed_forward_norm(x_BQD))


class QueryReader(nn.Module):
    """`num_queries` vectors that stand for all that was read; time and memory grow linearly with it."""

    def __init__(self, config: OneRecConfig, num_queries: int, num_blocks: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(num_queries, config.d_model)
        self.norm = RMSNorm(config.d_model, eps=1e-6)
        self.blocks = nn.ModuleList(QueryBlock(config) for _ in range(num_blocks))

    def forward(self, read_BRD: Tensor, real_BR: Tensor) -> Tensor:
        """Positions (B, R, D), those that `real_BR` marks -> (B, Q, D); of no meaning where it marks none."""
        visible_B11R = (real_BR | ~real_BR.any(dim=1, keepdim=True))[:, None, None]  # softmax wants one at least
        read_BRD = self.norm(read_BRD)
        x_BQD = self.queries.weight.expand(read_BRD.size(0), -1, -1)
        for block in self.blocks:
            x_BQD = block(x_BQD, read_BRD, visible_B11R)
        return x_BQD
