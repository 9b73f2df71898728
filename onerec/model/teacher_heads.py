"""Auxiliary heads that learn from a bigger model: knowledge distillation in the form of arXiv 2502.17494.

The teacher's distributions train heads of their own beside the code heads, so that its opinions and the true codes do
not pull at the same logits: what the two have in common is the decoder. Decoding never reads these heads.

Departures from arXiv 2502.17494: distributions over codes by Kullback-Leibler divergence (arXiv 1503.02531, section 2)
in place of its binary labels; no adapter for a teacher that lags behind, for this one is as the run it comes from.

Shapes: M targets, L levels, D width, K codes of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onerec.model.configuration import OneRecConfig


class TeacherHeads(nn.Module):
    """For each level a linear map to its codes, trained by what a teacher says of them."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.temperature = config.teacher_temperature
        self.levels = nn.ModuleList(nn.Linear(config.d_model, codes, bias=False) for codes in config.codes_per_level)

    def forward(self, hidden_MLD: Tensor, teacher_log_probs: Sequence[Tensor]) -> Tensor:
        """Losses (M,) summed over levels, by log-probabilities (M, K) a level.

        Both sides are softened by the temperature; its square keeps the gradient's size (arXiv 1503.02531, section 2).
        """
        losses = []
        for level, (head, log_probs_MK) in enumerate(zip(self.levels, teacher_log_probs, strict=True)):
            taught_MK = (log_probs_MK / self.temperature).log_softmax(dim=-1)
            found_MK = (head(hidden_MLD[:, level]).float() / self.temperature).log_softmax(dim=-1)
            losses.append(F.kl_div(found_MK, taught_MK, reduction="none", log_target=True).sum(dim=-1))
        return self.temperature**2 * torch.stack(losses).sum(dim=0)
