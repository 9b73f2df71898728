"""Cross-entropy of a softmax over many classes, with its probabilities as a by-product.

The gradient of a softmax's cross-entropy is its probabilities, less one at the target. torch's own loss forgets them
after the forward pass: with log-softmax, an exponential for whoever wants probabilities, a dense gradient of the chosen
entries and the exponential again backward it goes over the logits some ten times, and on a CPU took 1.3 to 1.9 times as
long as one softmax that is kept.

Legend: M rows, N classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_RARE = 1e-30  # below it the logarithm of a float32 probability loses digits


def softmax_losses(logits_MN: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (M,) of each row's target class (int64), and the softmax (M, N), which passes no gradient on."""
    losses_M, probs_MN = _SoftmaxLosses.apply(logits_MN, targets_M)
    return losses_M, probs_MN


class _SoftmaxLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MN: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        probs_MN = torch.softmax(logits_MN, dim=-1)
        ctx.save_for_backward(probs_MN, targets_M)
        ctx.mark_non_differentiable(probs_MN)
        target_probs_M = probs_MN.gather(1, targets_M[:, None])[:, 0]
        losses_M, rare_M = -target_probs_M.log(), target_probs_M < _RARE
        if rare_M.any():
            rare_logits = logits_MN[rare_M]
            losses_M[rare_M] = torch.nn.functional.cross_entropy(rare_logits, targets_M[rare_M], reduction="none")
        return losses_M, probs_MN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_M: Tensor, _: Tensor) -> tuple[Tensor, None]:
        probs_MN, targets_M = ctx.saved_tensors
        grads_MN = probs_MN * grads_M[:, None]
        return grads_MN.scatter_add_(1, targets_M[:, None], -grads_M[:, None]), None
