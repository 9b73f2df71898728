"""Loss of the prefixes that a beam search keeps or prunes, as APAO weighs them (arXiv 2603.02730, point-wise form).

A beam search drops an item as soon as one of its prefixes falls out of the beams, so the prefix that is worst now is
the one to train. Departures:

1. The weights follow the mean losses of a step's targets instead of each target's own.
2. The whole item is no prefix: cross-entropy has it already.

Shapes: L levels.
"""

import torch
from torch import Tensor


def prefix_loss(level_losses_L: Tensor, sharpness: float) -> Tensor:
    """Weighted mean of the losses of the first 1 to L - 1 codes; 0 where there is one level.

    The loss of a prefix is the mean of -log p over its codes; its weight, without gradient, is proportional to
    loss * exp(sharpness * loss).
    """
    num_prefixes = level_losses_L.numel() - 1
    lengths = torch.arange(1, num_prefixes + 1, device=level_losses_L.device)
    losses = level_losses_L[:num_prefixes].cumsum(dim=0) / lengths
    weights = (losses.detach().log() + sharpness * losses.detach()).softmax(dim=0)
    return (weights * losses).sum()
