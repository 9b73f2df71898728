"""What the reward model has to beat: popularity, and matrix factorisation by the same labels of the same events.

Shapes: B examples, G items of an example, T towers, U users, N items.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onerec.data.histories import Histories
from onerec.model.preference.signals import Signal
from rl.preference.events import ExampleRows
from rl.preference.settings import RewardModelSettings
from rl.preference.training import Candidates, CandidateSampler, fit

_WIDTH = 16
_SETTINGS = RewardModelSettings(epochs=40, patience=2, examples_per_step=1024, learning_rate=2e-3, weight_decay=2.0)


def popularity_scores(histories: Histories, rows: ExampleRows, num_items: int) -> np.ndarray:
    """Training events of each item (N,)."""
    return np.bincount(histories.items[rows.train], minlength=num_items)


class MatrixFactorisation(nn.Module):
    """One logistic matrix factorisation with biases a tower.

    A user without training events has a zero vector, and is shown items by their biases.
    """

    def __init__(self, num_users: int, num_items: int, signals: tuple[Signal, ...]) -> None:
        super().__init__()
        self.signals = signals
        num_towers = len(signals)
        self.users = nn.Embedding(num_users, num_towers * (_WIDTH + 1))
        self.items = nn.Embedding(num_items, num_towers * (_WIDTH + 1))
        nn.init.zeros_(self.users.weight)
        nn.init.normal_(self.items.weight, std=0.1)
        self.bias_T = nn.Parameter(torch.zeros(num_towers))

    def forward(self, users_B: Tensor, items_BG: Tensor) -> Tensor:
        """Logits (B, G, T) of a yes."""
        of_users = self.users(users_B).unflatten(-1, (len(self.signals), -1))[:, None]
        of_items = self.items(items_BG).unflatten(-1, (len(self.signals), -1))
        affinity_BGT = (of_users[..., 1:] * of_items[..., 1:]).sum(dim=-1)
        return affinity_BGT + of_users[..., 0] + of_items[..., 0] + self.bias_T

    def scores(self, candidates: Candidates) -> np.ndarray:
        """The same for candidates of events, without gradients."""
        users_B, items_BG = torch.from_numpy(candidates.users_B), torch.from_numpy(candidates.items_BG)
        with torch.inference_mode():
            return self(users_B, items_BG).numpy()

    def loss(self, candidates: Candidates) -> Tensor:
        """Mean cross-entropy of each tower's recorded labels, summed over towers."""
        columns = [signal.labels(candidates.values_BGT[..., place]) for place, signal in enumerate(self.signals)]
        labels_BGT = torch.from_numpy(np.stack(columns, axis=-1)).float()
        recorded_BGT = ~labels_BGT.isnan()
        logits_BGT = self(torch.from_numpy(candidates.users_B), torch.from_numpy(candidates.items_BG))
        losses_BGT = F.binary_cross_entropy_with_logits(logits_BGT, labels_BGT.nan_to_num(), reduction="none")
        return ((losses_BGT * recorded_BGT).sum(dim=(0, 1)) / recorded_BGT.sum(dim=(0, 1)).clamp(min=1)).sum()


def fit_matrix_factorisation(
    num_users: int,
    num_items: int,
    signals: tuple[Signal, ...],
    sampler: CandidateSampler,
    rows: ExampleRows,
    seed: int,
) -> MatrixFactorisation:
    """Train the factorisation on the events that the reward model learns from."""
    torch.manual_seed(seed)
    network = MatrixFactorisation(num_users, num_items, signals)
    fit(network, network.loss, sampler, rows, _SETTINGS, seed, "train matrix factorisation")
    return network
