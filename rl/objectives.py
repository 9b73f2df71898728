"""Objectives on the log-probabilities of whole items: GRPO and TRL's variants of it, ECPO (OneRec), GBPO (OneRec-V2).

Shapes: every tensor is (B, G), B requests and G samples of each, unless said; J is maximised.

With pi the policy, old what the samples were drawn from, r = pi / old, A the advantage and sg the stopped gradient:

    GRPO (arXiv 2402.03300)  J = min(r A, clip(r, 1 - epsilon, 1 + epsilon) A); DAPO (arXiv 2503.14476) has a larger
                             epsilon above, and Dr. GRPO (arXiv 2503.20783) advantages that are not scaled
    CISPO (arXiv 2506.13585) J = sg(min(r, 1 + epsilon above)) A log pi
    SAPO (arXiv 2511.20347)  J = 4 / t sigmoid(t (r - 1)) A,  t = 1 for A > 0, else 1.05
    VESPO (arXiv 2602.10693) J = sg(exp(l (1 - r)) r^k) A log pi,  k, l = 2, 3 for A >= 0, else 3, 2
    ECPO (arXiv 2506.13695)  old' = max(sg(pi) / (1 + epsilon + delta), old), then as GRPO: also for A < 0 the ratio
                             cannot pass 1 + epsilon + delta, where GRPO's has no bound
    GBPO (arXiv 2508.20900)  J = A pi / old',  old' = max(old, sg(pi)) for A >= 0, max(old, 1 - sg(pi)) for A < 0:
                             no sample is clipped away, and dJ/dpi stays below that of binary cross-entropy

Samples whose behaviour probability nobody logged (NaN) take old := sg(pi), as OneRec-V2 does with its cascade's.

Why not TRL's trainers: they have these only inside a trainer of 3,400 lines, over single tokens or over a
length-normalised sequence (GSPO), not over the product that an item of L codes is, and ECPO and GBPO not at all. What
TRL offers in parts is used: the group's standard deviation here, the moving reference in `rl.trainer`, the preference
losses in `rl.dpo`. A test holds `grpo`, its variants and the KL against TRL's own trainer on completions of one token,
where those of TRL's losses that differ by how they count tokens (bnpo, dr_grpo, dapo, luspo) are GRPO.
"""

import torch
from torch import Tensor

from onerec.errors import OneRecError

_NO_SPREAD = 1e-6
# The papers' constants, as in TRL: for good samples, for bad ones.
_SAPO_TEMPERATURES = 1.0, 1.05
_VESPO_POWERS, _VESPO_DECAYS = (2.0, 3.0), (3.0, 2.0)


def grpo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> Tensor:
    """The clipped surrogate of each sample."""
    ratios = (log_probs - _behaviour(old_log_probs, log_probs)).exp()
    return torch.minimum(ratios * advantages, ratios.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def cispo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, epsilon_high: float) -> Tensor:
    """Weights instead of the surrogate are clipped, so that every sample keeps a gradient."""
    ratios = (log_probs.detach() - _behaviour(old_log_probs, log_probs)).exp()
    return ratios.clamp(max=1 + epsilon_high) * advantages * log_probs


def sapo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """A sigmoid around the ratio of 1 in place of the clip."""
    ratios = (log_probs - _behaviour(old_log_probs, log_probs)).exp()
    temperatures = torch.where(advantages > 0, *_SAPO_TEMPERATURES)
    return 4 / temperatures * torch.sigmoid(temperatures * (ratios - 1)) * advantages


def vespo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """A gamma density's weight, 1 at the ratio of 1 and falling to both sides."""
    log_ratios = log_probs.detach() - _behaviour(old_log_probs, log_probs)
    powers, decays = (torch.where(advantages >= 0, *values) for values in (_VESPO_POWERS, _VESPO_DECAYS))
    return (decays * (1 - log_ratios.exp()) + powers * log_ratios).exp() * advantages * log_probs


def ecpo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, epsilon: float, delta: float) -> Tensor:
    """GRPO's surrogate after early clipping, which bounds the ratio by 1 + epsilon + delta (report: delta 0.1)."""
    least_old = log_probs.detach() - torch.log1p(torch.tensor(epsilon + delta))
    old_log_probs = torch.maximum(least_old, _behaviour(old_log_probs, log_probs))
    return grpo(log_probs, old_log_probs, advantages, epsilon, epsilon)


def gbpo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The gradient-bounded surrogate of each sample."""
    own = log_probs.detach()
    rest = torch.log(-torch.expm1(own.clamp(max=-torch.finfo(own.dtype).eps)))
    least_old = torch.where(advantages >= 0, own, rest)
    old_log_probs = torch.maximum(_behaviour(old_log_probs, log_probs), least_old)
    return (log_probs - old_log_probs).exp() * advantages


def kl_to_reference(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from the policy's own samples, never negative (Schulman's k3, as TRL's)."""
    log_ratio = reference_log_probs - log_probs
    return log_ratio.exp() - log_ratio - 1


def group_advantages(rewards: Tensor, present: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor]:
    """(r - mean) / std within each group over the samples that are present, and which groups have any spread (B,).

    Absent samples and groups without spread get 0. Without `scaled`, nothing is divided by the standard deviation.

    Raises:
        OneRecError: the reward of a present sample is NaN or infinite.
    """
    wrong = present & ~rewards.isfinite()
    if wrong.any():
        raise OneRecError(
            f"reward: {int(wrong.sum())} of {int(present.sum())} are NaN or infinite, expected numbers. "
            "Check the columns that the reward reads."
        )
    from trl.trainer.utils import nanstd  # importing TRL takes seconds

    values = rewards.masked_fill(~present, float("nan"))
    means = values.nanmean(dim=1, keepdim=True)
    deviations = nanstd(values, dim=1, keepdim=True)
    spread = deviations > _NO_SPREAD  # NaN, where fewer than two are present, is not
    advantages = torch.where(present & spread, (values - means) / (deviations if scaled else 1.0), 0.0)
    return advantages, spread[:, 0]


def _behaviour(old_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    return torch.where(old_log_probs.isnan(), log_probs.detach(), old_log_probs)
