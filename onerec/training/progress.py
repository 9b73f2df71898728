"""What a training's log tells of the steps since its last line."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onerec.model.configuration import OneRecConfig
from onerec.model.flops import training_flops
from onerec.model.target_loss import OneRecOutput

# Part of the output -> its name in the log, for those terms of the loss that not every model has.
_TERMS = {
    "item_loss": "loss_item_head",
    "id_loss": "loss_id_heads",
    "prefix_loss": "loss_prefix",
    "teacher_loss": "loss_teacher",
    "adversarial_loss": "loss_adversarial",
}
_SWITCHES = ("item_head_weight", "id_head_width", "prefix_loss_weight", "teacher_weight", "adversarial_weight")


class Progress:
    """Sums of one process since they were last drained: targets, FLOPs, weight of targets, then each loss by weight."""

    def __init__(self, config: OneRecConfig, device: torch.device) -> None:
        self._config = config
        chosen = [term for term, switch in zip(_TERMS, _SWITCHES, strict=True) if getattr(config, switch)]
        self._terms = chosen
        self._names = [*(f"loss_level_{level}" for level in range(config.num_levels)), *(_TERMS[t] for t in chosen)]
        self._sums = torch.zeros(3 + len(self._names), device=device)

    def note(self, inputs: dict[str, Any], outputs: OneRecOutput, counted: Tensor) -> None:
        """Add a step; one that does not count (bool) adds nothing."""
        assert outputs.level_losses_L is not None
        assert outputs.num_targets is not None
        assert outputs.target_weight is not None
        targets = int(outputs.num_targets * counted)
        positions = int((inputs["input_ids"] != 0).sum()) if targets else 0
        mean_context = inputs["input_ids"].size(1) / (2 if inputs["target_items"].size(1) > 1 else 1)
        weight = outputs.target_weight * counted
        terms = [getattr(outputs, term).detach().reshape(1) for term in self._terms]
        self._sums[0] += targets
        self._sums[1] += training_flops(self._config, positions, targets, mean_context)
        self._sums[2] += weight
        self._sums[3:] += torch.cat([outputs.level_losses_L, *terms]) * weight

    def drain(self, add_up: Callable[[Tensor], Tensor]) -> tuple[float, float, dict[str, float]]:
        """Targets, FLOPs and mean losses of all processes, whose sums `add_up` adds; then start again."""
        targets, flops, weight, *sums = add_up(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        return targets, flops, {name: total / weight for name, total in zip(self._names, sums, strict=True)}
