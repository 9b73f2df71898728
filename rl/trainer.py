"""The trainer of the align stage: transformers' Trainer over experience instead of data.

A step's batch is its own number; prompts, rollouts and windows follow from it and the seed, so that a resumed training
goes on as if it had never stopped.

Shapes: B prompts, G generated items of a prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from onerec.errors import OneRecError
from onerec.model.onerec import OneRec
from onerec.training.balancing import ExpertBalancer
from onerec.training.checkpoints import StagedCheckpoints
from onerec.training.processes import LONGEST_WAIT
from rl.dpo import PreferenceLoss
from rl.experience import ExperienceMaker
from rl.monitor import Baseline, Window, find_breach
from rl.objectives import kl_to_reference
from rl.policy import Experience, Policy, PolicyOutput, surrogate
from rl.settings import AlignSettings
from rl.supervision import SupervisedWindows

_REFERENCE = "reference"


@dataclass(frozen=True)
class Overseer:
    """What the trainer measures and keeps by.

    Args:
        measure: maps the model to the held-out metrics and the probe's figures.
        keep: receives the model and the step whenever every stop rule holds.
        baseline: what the pre-trained model reached.
        metric: the held-out metric of the stop rule.
        counts_N: training events of each item.
    """

    measure: Callable[[OneRec, OneRec], dict[str, float]]
    keep: Callable[[OneRec, int], None]
    baseline: Baseline
    metric: str
    counts_N: np.ndarray


class AlignTrainer(StagedCheckpoints):
    """Trains a policy on its own experience, watched by an overseer."""

    def __init__(
        self,
        policy: Policy,
        reference: OneRec,
        maker: ExperienceMaker,
        windows: SupervisedWindows | None,
        settings: AlignSettings,
        overseer: Overseer,
        args: TrainingArguments,
    ) -> None:
        self._policy, self._reference, self._maker, self._windows = policy, reference, maker, windows
        self._settings, self._overseer = settings, overseer
        self._checkpoint_root = Path(str(args.output_dir))
        self._experience: Experience | None = None
        dpo = settings.objective.kind == "dpo"
        self._preference = PreferenceLoss(settings.objective.preference) if dpo else None
        self.stop_reason: str | None = None
        super().__init__(model=policy, args=args, train_dataset=range(args.max_steps))
        self._balancer = ExpertBalancer(policy.model)
        self.add_callback(self._balancer)
        if settings.objective.reference_every_steps is not None:
            self.add_callback(_MovingReference(self._move_reference, settings.objective.reference_every_steps))
        self.add_callback(_Milestones(settings))
        if self.is_world_process_zero():
            self.add_callback(TensorBoardCallback(SummaryWriter(str(self._checkpoint_root / "tensorboard"))))
        self.model_accepts_loss_kwargs = False
        self._window = Window(overseer.counts_N, args.device)
        self._last_line: dict[str, float] = {}

    def get_train_dataloader(self) -> DataLoader:
        steps = range(self.args.max_steps)
        return DataLoader(steps, collate_fn=lambda chosen: {"step": chosen[0]})  # type: ignore[arg-type]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Fused AdamW over all weights."""
        settings = self._settings
        parameters = [parameter for parameter in self._policy.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, PolicyOutput]:
        """Minus the objective over generated, free and logged samples, and the supervised loss."""
        step = int(inputs["step"])
        experience = self._experience_at(step)
        windows = None if self._windows is None else self._windows.at(step, self.args.device)
        output: PolicyOutput = model(experience, windows)
        loss = policy_loss(output, experience, self._settings, self._preference) + self._supervised_loss(output)
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures of the rollouts since the last line.

        Raises:
            OneRecError: no group since then had rewards that differ.
        """
        if "loss" in logs:
            exposures_N, sums = (self.accelerator.reduce(tensor, reduction="sum") for tensor in self._window.tensors())
            self._last_line = self._window.figures(exposures_N, sums)
            self._window = Window(self._overseer.counts_N, self.args.device)
            logs = {**logs, **self._last_line, **self._balancer.drain()}
            logs |= {} if self._preference is None else self._preference.drain()
        super().log(logs, start_time)
        if "loss" in logs and self._settings.objective.weight and logs["groups_without_spread"] == 1:
            raise OneRecError(
                f"reward: constant within every group of the steps up to {self.state.global_step}, so that nothing "
                "can be learnt from it. Check align.reward, or give it larger groups (align.rollout.group_size)."
            )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure, then keep the weights or stop: the first broken rule ends the training."""
        told: list[dict[str, float]] = [self._measure() if self.is_world_process_zero() else {}]
        figures = broadcast_object_list(told)[0]
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        first = next(line["coverage"] for line in self.state.log_history if "coverage" in line)
        everything = {**self._last_line, **figures}
        settings, overseer = self._settings.monitor, self._overseer
        self.stop_reason = find_breach(settings, overseer.baseline, first, everything, overseer.metric)
        if self.stop_reason is not None:
            self.control.should_training_stop = True
            self.control.should_save = False  # a resumed training meets the rule again
        elif self.is_world_process_zero():
            overseer.keep(self._policy.model, self.state.global_step)
        return figures

    def _measure(self) -> dict[str, float]:
        was_training = self._policy.training
        self._policy.eval()
        figures = self._overseer.measure(self._policy.model, self._reference)
        self._policy.train(was_training)
        return figures

    def _experience_at(self, step: int) -> Experience:
        """The experience of a step, made anew where its rollout begins."""
        number, update = divmod(step, self._settings.rollout.updates)
        if self._experience is None or update == 0:
            self._experience, judged = self._maker.make(self._policy, self._reference, number)
            rollout = judged.rollout
            self._window.add(rollout.items_BG, rollout.present_BG, judged.rewards_BG, judged.targets_B, judged.spread_B)
        return self._experience

    def _supervised_loss(self, output: PolicyOutput) -> Tensor | float:
        """Mean over the targets of all processes, so that DDP's mean of gradients is right."""
        if output.supervised_loss is None:
            return 0.0
        num_targets = torch.tensor(float(output.num_targets), device=self.args.device)
        all_targets = self.accelerator.reduce(num_targets, reduction="sum").clamp(min=1)
        share = num_targets * self.args.world_size / all_targets
        return self._settings.supervised.weight * output.supervised_loss * share

    # ---- checkpoints, and the reference that moves -----------------------------------------------------------------

    def _move_reference(self) -> None:
        """Mix the policy into the reference."""
        from trl.trainer.callbacks import SyncRefModelCallback  # importing TRL takes seconds

        mixture = self._settings.objective.reference_mixture
        SyncRefModelCallback.sync_target_model(self._policy.model, self._reference, mixture)

    def _write_beside(self, staged: Path) -> None:
        if self._settings.objective.reference_every_steps is not None and self.is_world_process_zero():
            self._reference.save_pretrained(staged / _REFERENCE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = Path(resume_from_checkpoint) / _REFERENCE
        if stored.is_dir():
            self._reference.load_state_dict(OneRec.from_pretrained(stored).state_dict())


def policy_loss(
    output: PolicyOutput, experience: Experience, settings: AlignSettings, preference: PreferenceLoss | None
) -> Tensor:
    """Minus the objective: of the generated items or pairs; by option of free and of logged ones, KL, and legality."""
    objective = settings.objective
    present_BG, reference_BG = experience.rollout.present_BG, experience.reference_log_probs_BG
    log_probs_BG = output.scores.log_probs_BG
    if preference is not None and reference_BG is not None:
        with_spread_B = present_BG[:, 0]
        loss = objective.weight * preference(log_probs_BG[with_spread_B], reference_BG[with_spread_B])
    else:
        gains_BG = surrogate(log_probs_BG, experience.old_log_probs_BG, experience.advantages_BG, objective)
        loss = -objective.weight * (gains_BG * present_BG).mean()
    if reference_BG is not None:
        loss = loss + objective.kl_weight * (kl_to_reference(log_probs_BG, reference_BG) * present_BG).mean()
    if output.free is not None and settings.format is not None and experience.free_advantages_BF is not None:
        nothing = torch.full_like(output.free.log_probs_BG, float("nan"))
        gains_BF = surrogate(output.free.log_probs_BG, nothing, experience.free_advantages_BF, objective)
        loss = loss - settings.format.weight * gains_BF.sum() / (len(gains_BF) * settings.format.chosen)
    if output.logged is not None and settings.feedback is not None and experience.logged_advantages_B is not None:
        nothing = torch.full_like(output.logged.log_probs_BG, float("nan"))
        gains_B1 = surrogate(output.logged.log_probs_BG, nothing, experience.logged_advantages_B[:, None], objective)
        loss = loss - settings.feedback.weight * gains_B1.mean()
    if output.legal_masses_BG is not None:
        loss = loss - settings.legality_weight * (output.legal_masses_BG * present_BG).mean()
    return loss


class _Milestones(TrainerCallback):
    """Lines, checks and checkpoints every so many steps and at the end."""

    def __init__(self, settings: AlignSettings) -> None:
        self._every, self._last = settings.monitor.every_steps, settings.steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        due = state.global_step % self._every == 0 or state.global_step == self._last
        control.should_log = control.should_evaluate = control.should_save = due
        return control


class _MovingReference(TrainerCallback):
    """Moves the reference every so many steps."""

    def __init__(self, move: Callable[[], None], every_steps: int) -> None:
        self._move, self._every = move, every_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self._every == 0:
            self._move()


def training_arguments(settings: AlignSettings, folder: Path, seed: int) -> TrainingArguments:
    """Arguments of transformers' Trainer."""
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_gradient_norm,
        max_steps=settings.steps,
        logging_steps=settings.monitor.every_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        per_device_train_batch_size=1,
        disable_tqdm=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=not settings.supervised.weight,
        ddp_timeout=int(LONGEST_WAIT.total_seconds()),
        use_cpu=not torch.accelerator.is_available(),
    )
