"""Losses of the prefixes that a beam search keeps or prunes, as APAO weighs them (arXiv 2603.02730).

A beam search drops an item as soon as one of its prefixes falls out of the beams, so the prefix that is worst now is
the one to train. Point-wise, the loss of a prefix is the mean of -log p over its codes. Pair-wise, it is by code the
cross-entropy of its log p among those of other items' prefixes of the same length: it counts who outranks it, not how
likely it is.

Departures:

1. The weights follow the mean losses of a step's targets instead of each target's own, so that processes and parts of
   a step weigh their own targets.
2. The whole item is no prefix: cross-entropy has it already.
3. Rivals are drawn uniformly, with replacement, and one that shares the prefix does not count. Their probabilities are
   not scaled up to all prefixes, as in the authors' code: all of them sum to 1, which makes it the point-wise form.

Shapes: L levels, T prefixes, M targets, R rivals.
"""

import torch
from torch import Tensor


def prefix_loss(level_losses_L: Tensor, sharpness: float) -> Tensor:
    """Weighted mean of the losses of the first 1 to L - 1 codes, point-wise; 0 where there is one level.

    The loss of a prefix is the mean of -log p over its codes.
    """
    losses_T = level_losses_L[:-1].cumsum(dim=0)
    return worst_prefixes(losses_T / torch.arange(1, len(losses_T) + 1, device=losses_T.device), sharpness)


def worst_prefixes(losses_T: Tensor, sharpness: float) -> Tensor:
    """Mean of the prefixes' losses by weights, without gradient, proportional to loss * exp(sharpness * loss)."""
    weights_T = (losses_T.detach().log() + sharpness * losses_T.detach()).softmax(dim=0)
    return (weights_T * losses_T).sum()


def pairwise_prefix_losses(log_probs_MT: Tensor, rivals_MRT: Tensor, differ_MRT: Tensor) -> Tensor:
    """The loss (M, T) of each target's prefixes of 1 to T codes among those of its rivals.

    Args:
        log_probs_MT: of each code of the targets, given those before it.
        rivals_MRT: of each code of the rivals.
        differ_MRT: bool, whether a rival's code differs from the target's.
    """
    own_M1T = log_probs_MT.cumsum(dim=-1)[:, None]
    is_rival_MRT = differ_MRT.cumsum(dim=-1) > 0
    others_MRT = rivals_MRT.cumsum(dim=-1).masked_fill(~is_rival_MRT, float("-inf"))
    losses_MT = (torch.cat([own_M1T, others_MRT], dim=1).logsumexp(dim=1, keepdim=True) - own_M1T)[:, 0]
    return losses_MT / torch.arange(1, losses_MT.size(-1) + 1, device=losses_MT.device)
