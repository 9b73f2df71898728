"""Virtual adversarial training (arXiv 1704.03976, section 3) on the vectors of histories, as 1605.07725 on words.

What the model predicts is to stay as it is when a history's vectors move where its prediction changes most. One step of
the power iteration finds that direction: the gradient of the divergence at a random place close by. By option the move
is the larger, the better a history is fitted (VAT of arXiv 2409.17476): planted events mislead those who are fitted
best, and larger moves would blur the others for nothing.

Departures:
1. Sizes are shares of the norm of the history's own vectors, which training can therefore not grow away from.
2. The random place is as far away as the move itself, so that bfloat16 shows a difference.
3. arXiv 2409.17476 moves along the gradient of the loss itself and sees all users; here it is the direction above, and
   a sigmoid of how far a row's loss lies below the mean of the batch, as a share of that mean.

Shapes: B batch, S history items, E width of item vectors, M targets, K codes of a level.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

LogProbs = tuple[Tensor, ...]  # (M, K) a level


def adversarial_losses(
    predict: Callable[[Tensor], LogProbs], clean: LogProbs, start_BSE: Tensor, sizes_B: Tensor
) -> Tensor:
    """Divergence (M,) of each target's prediction after the move that changes it most.

    Args:
        predict: maps a move (B, S, E) of the histories' vectors to log-probabilities.
        clean: what it gives without a move, and without gradient.
        start_BSE: a random direction, 0 where there is no item.
        sizes_B: norms of the moves.
    """
    place = _of_norm(start_BSE, sizes_B).requires_grad_()
    divergence = divergences(clean, predict(place)).sum()
    with torch.autocast(place.device.type, enabled=False):  # as every backward pass is outside of autocast
        (gradient_BSE,) = torch.autograd.grad(divergence, place)
    return divergences(clean, predict(_of_norm(gradient_BSE, sizes_B)))


def divergences(clean: LogProbs, moved: LogProbs) -> Tensor:
    """Kullback-Leibler divergence (M,) of each target's codes, summed over levels."""
    pairs = zip(clean, moved, strict=True)
    by_level = [F.kl_div(q_MK, p_MK, reduction="none", log_target=True).sum(dim=-1) for p_MK, q_MK in pairs]
    return torch.stack(by_level).sum(dim=0)


def vulnerability(losses_B: Tensor) -> Tensor:
    """Share (B,) of the full move that each row gets: the more, the smaller its loss is beside the mean."""
    mean = losses_B.mean()
    return torch.sigmoid((mean - losses_B) / mean)


@contextlib.contextmanager
def replayed_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the same numbers in every block of this seed, so that predictions differ by their moves alone."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        yield


def _of_norm(moves_BSE: Tensor, sizes_B: Tensor) -> Tensor:
    norms_B = moves_BSE.flatten(1).norm(dim=1).clamp(min=torch.finfo(moves_BSE.dtype).tiny)
    return (moves_BSE * (sizes_B / norms_B)[:, None, None]).detach()
