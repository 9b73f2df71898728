"""One tower a feedback column: a likelihood of what was recorded, the probability of a yes, the expected value.

    binary, rating   Bernoulli of the yes          expected: its probability
    count            Poisson, yes = at least one   expected: the count
    seconds          the mixture of EGMN           expected: the seconds; yes = a long view

Shapes: B examples, G items of an example, O outputs of the backbone, H hidden width of a tower, R raw outputs of one.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onerec.data.settings import FeedbackKind
from onerec.model.preference.settings import WatchTimeSettings
from onerec.model.preference.signals import Signal
from onerec.model.preference.watch_time import WatchTime, num_outputs

_LEAST_RATE = 1e-6  # of a count, over the mean


@dataclass(frozen=True)
class Prediction:
    """What one tower says of each item."""

    hidden_BGH: Tensor
    raw_BGR: Tensor
    probability_BG: Tensor  # of a yes
    expected_BG: Tensor  # in the column's own unit


class Tower(nn.Module, ABC):
    """A hidden layer and as many outputs as the column's distribution has parameters; subclasses say what they mean."""

    num_raw = 1

    def __init__(self, signal: Signal, in_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.signal = signal
        self.hidden = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Dropout(dropout))
        self.output = nn.Linear(width, self.num_raw)

    def forward(self, x_BGO: Tensor) -> Prediction:
        """Read the backbone's outputs."""
        hidden_BGH = self.hidden(x_BGO)
        raw_BGR = self.output(hidden_BGH)
        return Prediction(hidden_BGH, raw_BGR, self.probability(raw_BGR), self.expected(raw_BGR))

    @abstractmethod
    def loss(self, raw_BGR: Tensor, values_BG: Tensor) -> Tensor:
        """Minus the log-likelihood (B, G) of recorded values."""

    @abstractmethod
    def probability(self, raw_BGR: Tensor) -> Tensor:
        """Probability (B, G) of a yes."""

    @abstractmethod
    def expected(self, raw_BGR: Tensor) -> Tensor:
        """Expected value (B, G)."""


class BernoulliTower(Tower):
    """Binary columns and ratings."""

    def loss(self, raw_BGR: Tensor, values_BG: Tensor) -> Tensor:
        labels_BG = (values_BG >= self.signal.positive_from).to(raw_BGR.dtype)
        return F.binary_cross_entropy_with_logits(raw_BGR.squeeze(-1), labels_BG, reduction="none")

    def probability(self, raw_BGR: Tensor) -> Tensor:
        return raw_BGR.squeeze(-1).sigmoid()

    def expected(self, raw_BGR: Tensor) -> Tensor:
        return self.probability(raw_BGR)


class PoissonTower(Tower):
    """Counts."""

    def loss(self, raw_BGR: Tensor, values_BG: Tensor) -> Tensor:
        rates_BG = self.expected(raw_BGR)
        return rates_BG - values_BG * rates_BG.log() + torch.lgamma(values_BG + 1)

    def probability(self, raw_BGR: Tensor) -> Tensor:
        return -torch.expm1(-self.expected(raw_BGR))

    def expected(self, raw_BGR: Tensor) -> Tensor:
        """A rate above 0 that starts near the training mean."""
        start = math.log(math.expm1(1.0))
        return self.signal.mean * (F.softplus(raw_BGR.squeeze(-1) + start) + _LEAST_RATE)


class WatchTimeTower(Tower):
    """Seconds."""

    def __init__(self, signal: Signal, in_width: int, width: int, dropout: float, settings: WatchTimeSettings) -> None:
        self.num_raw = num_outputs(settings.num_gaussians)
        super().__init__(signal, in_width, width, dropout)
        self.settings = settings

    def distribution(self, raw_BGR: Tensor) -> WatchTime:
        """The mixture of each item."""
        return WatchTime.of(raw_BGR, self.signal.mean)

    def loss(self, raw_BGR: Tensor, values_BG: Tensor) -> Tensor:
        """The loss of EGMN, in units of the mean time."""
        watched, unit = self.distribution(raw_BGR), self.signal.mean
        likelihood_BG = watched.log_density(values_BG) + math.log(unit)
        regression_BG = (values_BG - watched.mean()).abs() / unit
        settings = self.settings
        return settings.regression_weight * regression_BG - likelihood_BG - settings.entropy_weight * watched.entropy()

    def probability(self, raw_BGR: Tensor) -> Tensor:
        long_view = torch.full(raw_BGR.shape[:-1], self.signal.positive_from, device=raw_BGR.device)
        return (1 - self.distribution(raw_BGR).cdf(long_view)).clamp(0, 1)  # rounding may pass the ends

    def expected(self, raw_BGR: Tensor) -> Tensor:
        return self.distribution(raw_BGR).mean()


def build_tower(signal: Signal, in_width: int, width: int, dropout: float, watch_time: WatchTimeSettings) -> Tower:
    """The tower of a column's kind."""
    match signal.kind:
        case FeedbackKind.SECONDS:
            return WatchTimeTower(signal, in_width, width, dropout, watch_time)
        case FeedbackKind.COUNT:
            return PoissonTower(signal, in_width, width, dropout)
        case _:
            return BernoulliTower(signal, in_width, width, dropout)
