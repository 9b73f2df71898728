"""Training on the new events of one partition, from where the one before it has ended."""

from pathlib import Path

import torch
from torch import Tensor, nn

from onerec.data.histories import Histories
from onerec.model.onerec import OneRec
from onerec.streaming.moments import moments_of, restore_moments
from onerec.streaming.windows import new_event_windows
from onerec.training.checkpoints import latest_checkpoint
from onerec.training.failures import explained_failures
from onerec.training.settings import TrainingSettings
from onerec.training.trainer import OneRecTrainer
from tokenizer.artifacts import explained_os_errors


class PartitionTrainer(OneRecTrainer):
    """A trainer whose optimizer goes on with the moments of the partition before.

    It does not validate: a partition is evaluated before it is trained on, and the last weights go on.
    """

    def __init__(
        self,
        histories: Histories,
        model: OneRec,
        settings: TrainingSettings,
        folder: Path,
        seed: int,
        moments: dict[str, Tensor] | None,
    ) -> None:
        self._moments = moments
        self._optimizer: torch.optim.Optimizer | None = None
        self.trained_model = model
        super().__init__(
            model,
            new_event_windows(histories, model.config.max_history_items, model.config.many_targets),
            settings,
            folder,
            seed,
            validate=lambda _: {settings.selection_metric: 0.0},
            on_best=lambda _model, _step: None,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the settings, with the moments it is to go on with."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            self._optimizer = optimizer
            if self._moments is not None:
                restore_moments(optimizer, self._moments)
        return optimizer

    def moments(self) -> dict[str, Tensor]:
        """What the optimizer holds after training."""
        assert self._optimizer is not None
        return moments_of(self._optimizer)


def train_on(
    histories: Histories,
    model: OneRec,
    settings: TrainingSettings,
    folder: Path,
    seed: int,
    moments: dict[str, Tensor] | None,
) -> PartitionTrainer:
    """Train a model on those events that are not labelled as trained; goes on from the newest checkpoint in `folder`.

    Raises:
        ConfigError: settings that contradict the model's, or out of memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = PartitionTrainer(histories, model.train(), settings, folder, seed, moments)
    resume_from = latest_checkpoint(folder)
    with explained_os_errors(folder), explained_failures(settings):
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer
