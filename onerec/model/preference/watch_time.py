"""Watch time as a mixture of one exponential (quick skips) and K Gaussians (interests): EGMN, arXiv 2508.12665.

    p(y) = w_0 exp(-y / theta) / theta + sum_k w_k N(y; mu_k, sigma_k)
    loss = -log p(y) + regression_weight |y - E[y]| - entropy_weight H(w)

Departures:
1. The Gaussians are cut off at 0 and renormalised, so that p is a distribution of times: it has quantiles, and no mass
   lies below 0. With mu > 0 the divisor Phi(mu / sigma) is at least one half.
2. Times are in units of the mean training time, and theta and sigma are at least a hundredth of it: a point on which
   many times fall cannot draw all likelihood.
3. The Gaussians' means start spread out, since components that start as one stay one.
4. The two weights are ours.

Shapes: `...` of any shape, K Gaussian components.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_FLOOR = 0.01
_BISECTIONS = 60
_SPREAD = (-2.0, 4.0)  # of the means before softplus: 0.13 to 4 mean times


@dataclass(frozen=True)
class WatchTime:
    """Distributions of watch time, in seconds.

    Args:
        log_weights: (..., 1 + K) of the exponential and the Gaussian components.
        theta: (...) mean of the exponential component.
        mu, sigma: (..., K), before the cut at 0.
    """

    log_weights: Tensor
    theta: Tensor
    mu: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, raw: Tensor, unit_seconds: float) -> "WatchTime":
        """From a network's outputs (..., 3 K + 2), see `num_outputs`."""
        num_gaussians = (raw.size(-1) - 2) // 3
        logits, theta, mu, sigma = raw.split([1 + num_gaussians, 1, num_gaussians, num_gaussians], dim=-1)
        starts = torch.linspace(*_SPREAD, num_gaussians, device=raw.device)
        return cls(
            log_weights=logits.log_softmax(dim=-1),
            theta=unit_seconds * (F.softplus(theta.squeeze(-1)) + _FLOOR),
            mu=unit_seconds * F.softplus(mu + starts),
            sigma=unit_seconds * (F.softplus(sigma) + _FLOOR),
        )

    def log_density(self, seconds: Tensor) -> Tensor:
        """log p of each time (...), 0 or more."""
        exponential = -seconds / self.theta - self.theta.log()
        scaled = (seconds.unsqueeze(-1) - self.mu) / self.sigma
        gaussians = -0.5 * scaled.square() - self.sigma.log() - 0.5 * math.log(2 * math.pi) - self._log_kept()
        return (self.log_weights + torch.cat([exponential.unsqueeze(-1), gaussians], dim=-1)).logsumexp(dim=-1)

    def cdf(self, seconds: Tensor) -> Tensor:
        """Probability (...) that no more than this is watched; of a time that was watched, its quantile."""
        exponential = -torch.expm1(-seconds / self.theta)
        cut = torch.special.ndtr(-self.mu / self.sigma)
        gaussians = (torch.special.ndtr((seconds.unsqueeze(-1) - self.mu) / self.sigma) - cut) / (1 - cut)
        return (self.log_weights.exp() * torch.cat([exponential.unsqueeze(-1), gaussians], dim=-1)).sum(dim=-1)

    def mean(self) -> Tensor:
        """Expected time (...)."""
        ratio = self.mu / self.sigma
        log_hazard = -0.5 * ratio.square() - 0.5 * math.log(2 * math.pi) - self._log_kept()
        gaussians = self.mu + self.sigma * log_hazard.exp()
        return (self.log_weights.exp() * torch.cat([self.theta.unsqueeze(-1), gaussians], dim=-1)).sum(dim=-1)

    @torch.no_grad()
    def quantile(self, probability: float) -> Tensor:
        """The time (...) that is not passed with this probability, by bisection of the distribution function."""
        low = torch.zeros_like(self.theta)
        # Beyond this every component has less than 1 - probability left.
        high = torch.maximum(-self.theta * math.log1p(-probability), (self.mu + 10 * self.sigma).amax(dim=-1))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self.cdf(middle) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high

    def entropy(self) -> Tensor:
        """Entropy (...) of the components' weights, in nats."""
        return -(self.log_weights.exp() * self.log_weights).sum(dim=-1)

    def _log_kept(self) -> Tensor:
        """log of each Gaussian's mass above 0."""
        return torch.special.log_ndtr(self.mu / self.sigma)


def num_outputs(num_gaussians: int) -> int:
    """Numbers that make one distribution: weights, the exponential's mean, the Gaussians' means and deviations."""
    return 3 * num_gaussians + 2
