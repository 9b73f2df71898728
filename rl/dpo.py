"""Preference optimisation on whole items with TRL's losses: the best of a group against its worst by the reward.

OneRec v1 (arXiv 2502.18965) aligns iteratively: a beam of the present model, the reward's best item against its worst,
DPO (arXiv 2305.18290) with the model of the last round as the reference, and again. Here a round is
`objective.reference_every_steps` steps with `reference_mixture: 1`.

Departures from v1:
1. An item, not a session of five, is what is preferred.
2. Pairs are made anew at every step, by the policy as it is. Workers that are sent the weights once a round
   (`rollout.workers`, and `rollout.sync_every` as long as a round) make them with the round's reference, as in v1.

The losses are those inside TRL's DPOTrainer, which reads them off one method. An item is told to it as a completion of
a single token whose log-probability is the item's, and the reference's as if they had been computed before.

Shapes: B prompts, G items of a prompt, M pairs; 2 stands for (chosen, rejected).
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from tokenizer.settings import Settings

_LOGGED = ("rewards/", "logps/")  # of TRL's figures those that mean something for an item

LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


class PreferenceSettings(Settings):
    """TRL's options of the preference loss."""

    loss_types: tuple[LossType, ...] = Field(("sigmoid",), min_length=1, description="sigmoid is DPO; sft: likelihood")
    loss_weights: tuple[float, ...] | None = Field(None, description="one a loss type; null: 1 each")
    beta: PositiveFloat = Field(0.1, description="strength of the tie to the reference (TRL: 0.1)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="robust, exo_pair and aot: chance of a wrong label")

    @model_validator(mode="after")
    def _one_weight_a_loss(self) -> "PreferenceSettings":
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_types):
            raise ValueError(
                f"loss_weights: found {len(self.loss_weights)}, expected one for each of {len(self.loss_types)} losses"
            )
        if self.label_smoothing == 0 and "exo_pair" in self.loss_types:
            raise ValueError("exo_pair needs label_smoothing above 0")
        return self


class PreferenceLoss:
    """TRL's loss over pairs of items, and its figures since they were last asked for."""

    def __init__(self, settings: PreferenceSettings) -> None:
        from trl.trainer.dpo_trainer import DPOTrainer  # importing TRL takes seconds

        def alone(tensor: Tensor) -> Tensor:
            return tensor

        self._compute: Any = DPOTrainer._compute_loss
        # What TRL's method reads of its trainer. Figures are this process's own, for pairs differ in number.
        self._trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(device=None, gather=alone, gather_for_metrics=alone),
            args=SimpleNamespace(discopop_tau=0.05),  # TRL's default
            loss_types=settings.loss_types,
            loss_weights=settings.loss_weights or (1.0,) * len(settings.loss_types),
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            f_divergence_type="reverse_kl",
            ld_alpha=None,
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            use_weighting=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )

    def __call__(self, log_probs_M2: Tensor, reference_log_probs_M2: Tensor) -> Tensor:
        """Mean loss of the pairs; 0, with gradients of 0, where there is none."""
        if not len(log_probs_M2):
            return log_probs_M2.sum()
        log_probs = log_probs_M2.T.reshape(-1, 1)  # the chosen ones first, then the rejected
        nothing = torch.zeros_like(log_probs).detach()
        told = SimpleNamespace(
            log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=torch.zeros_like(log_probs) > 0
        )
        prompt_and_item = torch.tensor([0, 1], device=log_probs.device).expand(len(log_probs), 2)
        inputs = {
            "input_ids": prompt_and_item,
            "attention_mask": torch.ones_like(prompt_and_item),
            "completion_mask": prompt_and_item,
            "ref_chosen_logps": reference_log_probs_M2[:, 0],
            "ref_rejected_logps": reference_log_probs_M2[:, 1],
        }
        self._trainer.accelerator.device = log_probs.device
        loss: Tensor = self._compute(self._trainer, lambda **_: told, inputs, False)
        return loss

    def drain(self) -> dict[str, float]:
        """Rewards and log-probabilities of chosen and rejected items apart, averaged since the last call."""
        figures: dict[str, Any] = self._trainer._metrics.pop("train", {})
        return {
            name: sum(values) / len(values) for name, values in figures.items() if values and name.startswith(_LOGGED)
        }


def best_and_worst(rewards_BG: Tensor, present_BG: Tensor) -> Tensor:
    """Places (B, 2) of the highest and the lowest reward among the items that are present; the first of equal ones."""
    best_B = rewards_BG.masked_fill(~present_BG, float("-inf")).argmax(dim=1)
    worst_B = rewards_BG.masked_fill(~present_BG, float("inf")).argmin(dim=1)
    return torch.stack([best_B, worst_B], dim=1)
