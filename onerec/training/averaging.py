"""A whole copy of the weights in training, on the main process: their moving average, or what ZeRO 3 has sharded.

The average is exponential. As its random start would else weigh for some 1 / (1 - decay) steps, the decay of step t is
at most (1 + t) / (10 + t), the ramp of TensorFlow's ExponentialMovingAverage. With ZeRO 3 each step gathers all weights
once more for it.
"""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onerec.model.onerec import OneRec
from onerec.training.deepspeed import whole_parameters

FILE = "average.safetensors"


class WeightCopy(TrainerCallback):
    """Follows a model's weights from step to step; all processes call its methods together, the main one holds it.

    Args:
        decay: of the moving average; None to hold the present weights.
    """

    def __init__(self, source: OneRec, decay: float | None, is_main: bool, device: torch.device) -> None:
        self._source, self._decay = source, decay
        self._copy = copy.deepcopy(source).eval() if is_main else None
        if self._copy is not None:
            self._copy.to(device=device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Take the weights after this step into the average."""
        if self._decay is not None:
            self._blend(min(self._decay, (1 + state.global_step) / (10 + state.global_step)))

    def model(self) -> OneRec | None:
        """The copy as it stands, None where this process has none."""
        if self._decay is None:
            self._blend(0.0)
        if self._copy is not None:
            for held, buffer in zip(self._copy.buffers(), self._source.buffers(), strict=True):
                held.copy_(buffer)
        return self._copy

    def save(self, checkpoint: Path) -> None:
        """Store a moving average beside a checkpoint's weights."""
        if self._copy is not None and self._decay is not None:
            save_file({name: value.detach() for name, value in self._copy.named_parameters()}, checkpoint / FILE)

    def load(self, checkpoint: Path) -> None:
        """Go on with the average of a checkpoint."""
        if self._copy is not None and self._decay is not None:
            self._copy.load_state_dict(load_file(checkpoint / FILE), strict=False)

    @torch.no_grad()
    def _blend(self, decay: float) -> None:
        held = {} if self._copy is None else dict(self._copy.named_parameters())
        for name, value in whole_parameters(self._source):
            if held:
                held[name].lerp_(value.to(held[name]), 1 - decay)
