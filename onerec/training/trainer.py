"""OneRec's pre-training: transformers' Trainer with ragged batches, whole checkpoints and our evaluator.

One Trainer "epoch" is the complete training: the sampler lays out the batches of all passes in an order fixed by the
seed, so that a resumed run only skips batches and continues with the very same ones.

Several processes share the windows of every step, and each may work through its share in several parts: losses and
gradients are means over the targets of all of them, so neither number changes anything. The main process validates and
tells the others.

Shapes: B batch, S positions, P targets a row, L levels.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from onerec.data.batches import IGNORED_TARGET, TrainingWindows, bucketed_batches
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from onerec.model.precision import Precision, choose_precision
from onerec.model.target_loss import OneRecOutput
from onerec.training.averaging import WeightCopy
from onerec.training.balancing import ExpertBalancer
from onerec.training.checkpoints import StagedCheckpoints
from onerec.training.deepspeed import deepspeed_config
from onerec.training.optimizers import build_optimizer, clip_gradients, schedule_arguments, use_sparse_gradients
from onerec.training.processes import LONGEST_WAIT
from onerec.training.progress import Progress
from onerec.training.recomputation import recompute_activations
from onerec.training.settings import TrainingSettings
from onerec.training.teacher import Teacher
from onerec.training.throughput import measure_matmul_gflops


class BatchPlan(Sampler[np.ndarray]):
    """The windows of every step of a training, dealt out to the parts of the step and in each to the processes.

    The steps do not depend on the number of either; a step of fewer windows leaves some of them without any.
    """

    def __init__(
        self, windows: TrainingWindows, settings: TrainingSettings, seed: int, rank: int, num_processes: int
    ) -> None:
        self._windows, self._settings = windows, settings
        self._shapes = windows.num_positions, windows.num_untrained_positions
        self._seed, self._rank, self._num_processes = seed, rank, num_processes
        steps_per_epoch = [len(self._batches(epoch)) for epoch in range(settings.epochs)]
        self.epoch_ends = np.cumsum(steps_per_epoch)  # global step after each epoch

    def __len__(self) -> int:
        return int(self.epoch_ends[-1]) * self._settings.accumulation_steps

    def __iter__(self) -> Iterator[np.ndarray]:
        """What this process reads, `accumulation_steps` times a step: epoch * number of windows + window."""
        num_parts = self._settings.accumulation_steps
        for epoch in range(self._settings.epochs):
            first = epoch * len(self._windows)
            for batch in self._batches(epoch):
                for part in range(num_parts):
                    yield first + batch[part::num_parts][self._rank :: self._num_processes]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        chosen = self._windows.of_epoch(epoch)
        if not len(chosen):
            return []
        positions, untrained = (shape[chosen] for shape in self._shapes)
        limit = self._settings.max_positions_per_step
        batches = bucketed_batches(positions, untrained, limit, self._seed, epoch)
        return [chosen[batch] for batch in batches]


class _Rows:
    """The dataset the loader sees: a window is its own number, so that a batch is collated in one vectorised call."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> int:
        return int(row)


class OneRecTrainer(StagedCheckpoints):
    """Trainer over `TrainingWindows`.

    Args:
        validate: maps the model to its validation metrics.
        on_best: receives the model and the step whenever the selection metric has improved.
        teacher: reads the same batches, for a model with heads that learn from it.

    Raises:
        ConfigError: settings that contradict the model's.
    """

    def __init__(
        self,
        model: OneRec,
        windows: TrainingWindows,
        settings: TrainingSettings,
        folder: Path,
        seed: int,
        validate: Callable[[OneRec], dict[str, float]],
        on_best: Callable[[OneRec, int], None],
        teacher: Teacher | None = None,
    ) -> None:
        _require_whole_weights(model, settings)
        self._windows, self._settings, self._validate, self._on_best = windows, settings, validate, on_best
        self._teacher = teacher
        self._core_model = model
        self._checkpoint_root = folder
        self.precision = choose_precision(settings.precision)
        args = _training_arguments(settings, folder, seed, self.precision)
        self._plan = BatchPlan(windows, settings, seed, args.process_index, args.world_size)
        args.max_steps = int(self._plan.epoch_ends[-1])
        for name, value in schedule_arguments(settings, args.max_steps).items():
            setattr(args, name, value)
        super().__init__(model=model, args=args, train_dataset=_Rows(len(windows)))
        self._add_callbacks()
        if settings.sparse_tables:
            use_sparse_gradients(model)
        if settings.activation_checkpointing:
            recompute_activations(model)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self._matmul_gflops = measure_matmul_gflops(args.device, getattr(torch, self.precision))
        self._progress = Progress(model.config, args.device)
        if teacher is not None:
            teacher.to(args.device)
        self._step_clock = _Stopwatch()

    def _add_callbacks(self) -> None:
        """What follows every step: validation and checkpoints, copies of the weights, load of experts, curves."""
        settings, model = self._settings, self._core_model
        self.add_callback(_Milestones(self._plan.epoch_ends, settings))
        self._copy: WeightCopy | None = None
        if settings.ema_decay is not None or settings.zero_stage == 3:
            self._copy = WeightCopy(model, settings.ema_decay, self.is_world_process_zero(), self.args.device)
            self.add_callback(self._copy)
        self._balancer = ExpertBalancer(model)
        self.add_callback(self._balancer)
        if self.is_world_process_zero():
            self.add_callback(TensorBoardCallback(SummaryWriter(str(self._checkpoint_root / "tensorboard"))))

    @property
    def training_minutes(self) -> float:
        """Minutes of training and validation that led to the present state, interrupted runs included."""
        log = self.state.log_history
        return sum(line.get("seconds", 0.0) + line.get("eval_seconds", 0.0) for line in log) / 60

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self._plan,  # type: ignore[arg-type]
            collate_fn=self._collate,
        )

    def _collate(self, rows: list[int]) -> dict[str, Tensor]:
        """A process without a window of its own reads one of weight 0, so that all processes take the step together."""
        epochs, windows = np.divmod(rows or [0], len(self._windows))
        batch = self._windows.collate(windows, int(epochs[0]))
        return {**batch, "weight": torch.tensor(bool(rows))}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the settings."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self._core_model, self._settings)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Targets of a whole step by weight, over its parts and all processes; None with one part of one process."""
        if self.args.world_size * self._settings.accumulation_steps == 1:
            return None
        counts = [
            part.get("target_weights", part["target_items"] != IGNORED_TARGET).sum() * part["weight"]
            for part in batch_samples
        ]
        return self.accelerator.reduce(torch.stack(counts).sum().float().to(device), reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, OneRecOutput]:
        """This part's share in the mean over the targets of a step, so that two processes give the losses of one."""
        counted = inputs.pop("weight")
        taught = {} if self._teacher is None else {"teach": self._teacher.reading(inputs)}
        outputs: OneRecOutput = model(**inputs, counted=counted, **taught)
        loss = outputs.loss
        assert loss is not None
        assert outputs.target_weight is not None
        if num_items_in_batch is not None:
            loss = loss * (outputs.target_weight * counted) * self.args.world_size / num_items_in_batch
        self._progress.note(inputs, outputs, counted)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        if self._settings.sparse_tables:
            return clip_gradients(model.parameters(), self._settings.max_gradient_norm)
        return super()._clip_grad_norm(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the level losses and the speed since the last line."""
        if "loss" in logs:
            logs = {**logs, **self._drain_progress()}
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate with the project's evaluator; the best weights so far are handed to `on_best`."""
        candidate = self._candidate()
        told: list[dict[str, float]] = [{} if candidate is None else self._measure(candidate)]
        metrics = broadcast_object_list(told)[0]
        self._step_clock.restart()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        best = self.state.best_metric
        score = metrics[f"eval_{self._settings.selection_metric}"]
        if candidate is not None and (best is None or score > best):
            self._on_best(candidate, self.state.global_step)
        return metrics

    def _candidate(self) -> OneRec | None:
        """The whole model to validate and to keep, on the main process; all of them call it together."""
        if self._copy is not None:
            return self._copy.model()
        return self._core_model if self.is_world_process_zero() else None

    def _measure(self, candidate: OneRec) -> dict[str, float]:
        was_training = candidate.training
        candidate.eval()
        self._step_clock.restart()
        metrics = {f"eval_{name}": value for name, value in self._validate(candidate).items()}
        candidate.train(was_training)
        return {**metrics, "eval_seconds": self._step_clock.restart()}

    def _write_beside(self, staged: Path) -> None:
        if self._copy is not None:
            self._copy.save(staged)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._step_clock.restart()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._copy is not None:
            self._copy.load(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Where another number of processes wrote the checkpoint, this one draws numbers of its own from here on."""
        torch.manual_seed(hash((self.args.seed, self.state.global_step, self.args.process_index)))
        super()._load_rng_state(checkpoint)

    def _drain_progress(self) -> dict[str, float]:
        seconds = self._step_clock.restart()
        targets, flops, losses = self._progress.drain(lambda sums: self.accelerator.reduce(sums, reduction="sum"))
        return {
            **losses,
            **self._balancer.drain(),
            "seconds": seconds,
            "targets_per_s": targets / seconds,
            "tokens_per_s": targets * self._core_model.config.num_levels / seconds,
            "flops_utilisation": flops / seconds / 1e9 / (self._matmul_gflops * self.args.world_size),
        }


class _Milestones(TrainerCallback):
    """Validates and saves at the ends of epochs and saves in between; a line is logged wherever something is saved."""

    def __init__(self, epoch_ends: np.ndarray, settings: TrainingSettings) -> None:
        ends = epoch_ends[settings.evaluate_every_epochs - 1 :: settings.evaluate_every_epochs]
        self._validated = {int(step) for step in ends} | {int(epoch_ends[-1])}
        self._checkpoint_steps = settings.checkpoint_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = state.global_step
        control.should_evaluate = step in self._validated
        between = self._checkpoint_steps is not None and step % self._checkpoint_steps == 0
        control.should_save = control.should_evaluate or between
        control.should_log = control.should_log or control.should_save
        return control


class _Stopwatch:
    """Seconds since it was last restarted."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def restart(self) -> float:
        """Start again and return the seconds that had passed."""
        start, self._start = self._start, time.perf_counter()
        return max(self._start - start, 1e-9)


def _require_whole_weights(model: OneRec, settings: TrainingSettings) -> None:
    if settings.zero_stage == 3 and model.config.adversarial_weight:
        raise ConfigError(
            "training.zero_stage: found 3 beside model.adversarial_weight, whose gradients inside the forward pass "
            "need whole weights; expected 0 to 2. Lower zero_stage or set adversarial_weight to 0."
        )


def _training_arguments(settings: TrainingSettings, folder: Path, seed: int, precision: Precision) -> TrainingArguments:
    sharding = deepspeed_config(settings, precision)
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_gradient_norm,
        max_steps=1,  # set to the length of the plan once the number of processes is known
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        metric_for_best_model=settings.selection_metric,
        greater_is_better=True,
        bf16=sharding is None and precision == "bfloat16",
        deepspeed=sharding,
        report_to=[],
        remove_unused_columns=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.accumulation_steps,
        disable_tqdm=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(LONGEST_WAIT.total_seconds()),
        use_cpu=not torch.accelerator.is_available(),
    )
