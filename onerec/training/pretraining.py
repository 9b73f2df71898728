"""The pre-training stage: prepared data and an ID table in, the best validated model out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn
from transformers.trainer_utils import set_seed

from kernels.denormals import flushed_denormals
from onerec.data.batches import TrainingWindows, many_target_windows, one_target_windows
from onerec.data.features import FittedPathways
from onerec.data.histories import Histories
from onerec.data.pathways import EventSource, WindowPathways
from onerec.data.sessions import session_windows
from onerec.data.settings import SessionSettings
from onerec.data.sliding import sliding_windows
from onerec.data.target_settings import TargetSettings
from onerec.data.targets import FutureTargets, event_weights
from onerec.errors import ArtifactError, ConfigError, DataError
from onerec.model.item_start import start_items
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.checkpoints import latest_checkpoint
from onerec.training.deepspeed import deepspeed_runtime, require_same_processes
from onerec.training.failures import explained_failures
from onerec.training.settings import TeacherSettings, TrainingSettings
from onerec.training.teacher import Teacher, save_without_teaching
from onerec.training.trainer import OneRecTrainer
from tokenizer.artifacts import (
    atomic_folder,
    explained_os_errors,
    read_manifest,
    require_same_hash,
    restore_folder,
    write_manifest,
)
from tokenizer.pieces import SemanticIdPieces
from tokenizer.table import SemanticIdTable

ARTIFACT_KIND = "pretrain"
BEST = "best"

Validate = Callable[[OneRec], dict[str, float]]


@dataclass(frozen=True)
class Fitted:
    """What was fitted beside the ID table and becomes part of a model.

    Args:
        pieces: of the table's semantic IDs, for item vectors that sum theirs too.
        pathways: features for the pathways of the model's settings, where they name any.
        item_vectors_NV: the tokenizer's, for a model whose items start from them.
    """

    pieces: SemanticIdPieces | None = None
    pathways: FittedPathways | None = None
    item_vectors_NV: np.ndarray | None = None


NOTHING_FITTED = Fitted()


@flushed_denormals()
def pretrain(
    histories: Histories,
    table: SemanticIdTable,
    model_settings: ModelSettings,
    training_settings: TrainingSettings,
    validate: Validate,
    folder: Path,
    work_folder: Path,
    inputs: dict[str, str],
    config_hash: str,
    seed: int,
    fitted: Fitted = NOTHING_FITTED,
    sessions: SessionSettings | None = None,
) -> OneRec:
    """Train on the training events of `histories`, keep the weights best on validation, and store them in `folder`.

    A training that was stopped goes on from its newest checkpoint in `work_folder`, with the losses of one that never
    was.

    Args:
        validate: maps a model in evaluation mode to metrics, the selection metric among them.
        inputs: content hashes of the artefacts this one is made from.
        sessions: rules of the lists that a model of lists is trained on.

    Raises:
        OneRecError: settings that contradict each other, the data or what is given, or what ends a training.
    """
    set_seed(seed)
    teaching = training_settings.teacher
    model = build_model(model_settings, table, fitted, teaching, seed)
    teacher = None if teaching is None else Teacher.load(teaching.path, model)
    windows = training_windows(histories, model, fitted.pathways, training_settings.targets, seed, sessions)
    trainer = _train(model, windows, training_settings, work_folder, seed, validate, teacher)
    if trainer.is_world_process_zero():
        all_inputs = inputs if teacher is None else {**inputs, "teacher": teacher.content_hash}
        _publish(work_folder / BEST, folder, trainer, all_inputs, config_hash, table)
    trainer.accelerator.wait_for_everyone()
    return load_pretrained(folder, table)


def _train(
    model: OneRec,
    windows: TrainingWindows,
    settings: TrainingSettings,
    work_folder: Path,
    seed: int,
    validate: Validate,
    teacher: Teacher | None,
) -> OneRecTrainer:
    """The trainer after all epochs, which has left the best weights in the work folder.

    Raises:
        ConfigError: the settings ask for what is not installed, or need too much memory.
        ArtifactError: another number of processes has written the ZeRO checkpoint to continue from.
        OneRecError: another process of the run has ended.
    """
    work_folder.mkdir(parents=True, exist_ok=True)

    def keep_best(candidate: OneRec, step: int) -> None:
        with atomic_folder(work_folder / BEST) as temporary:
            save_without_teaching(candidate, temporary)
            (temporary / "step.json").write_text(json.dumps({"step": step}))

    with deepspeed_runtime(settings.zero_stage):
        trainer = OneRecTrainer(model, windows, settings, work_folder, seed, validate, keep_best, teacher)
        resume_from = latest_checkpoint(work_folder)
        if resume_from is not None:
            require_same_processes(resume_from, trainer.args.world_size)
        with explained_os_errors(work_folder), explained_failures(settings):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer


def build_model(
    settings: ModelSettings,
    table: SemanticIdTable,
    fitted: Fitted = NOTHING_FITTED,
    teacher: TeacherSettings | None = None,
    seed: int = 0,
) -> OneRec:
    """A freshly initialised model that holds the ID table and what else was fitted.

    Args:
        teacher: gives it heads that learn from one.
        seed: of what its items start from; the other weights follow torch's own.

    Raises:
        ArtifactError: its items are to start from the tokenizer's vectors, and there are none or another catalogue's.
    """
    num_pieces = fitted.pieces.vocabulary_size if fitted.pieces is not None else 0
    spec = None if fitted.pathways is None else fitted.pathways.spec
    config = settings.configuration(table.codes_per_level, len(table.codes_NL), num_pieces, spec)
    if teacher is not None:
        config.teacher_weight, config.teacher_temperature = teacher.weight, teacher.temperature
    model = OneRec(config)
    model.set_codes(table.codes_NL, table.content_hash)
    if fitted.pathways is not None:
        model.encoder.set_pathways(fitted.pathways)
    if fitted.pieces is not None:
        item_pieces = fitted.pieces.encode(table.codes_NL)
        model.set_pieces(item_pieces.pieces_P, item_pieces.offsets)
    if settings.item_start:
        _start_items("item_start", model.encoder.embedding.items, fitted, settings.item_start, seed)
    for number, head in enumerate(model.id_heads):
        if number and settings.id_head_start:
            _start_items("id_head_start", head.network.items, fitted, settings.id_head_start, seed + number)
    return model


def _start_items(key: str, table: nn.Embedding | None, fitted: Fitted, size: float, seed: int) -> None:
    if fitted.item_vectors_NV is None or table is None:
        raise ArtifactError(f"model.{key}: found no item vectors to start from. Give the tokenizer's, or set it to 0.")
    start_items(table, fitted.item_vectors_NV, size, seed)


def training_windows(
    histories: Histories,
    model: OneRec,
    pathways: FittedPathways | None = None,
    targets: TargetSettings | None = None,
    seed: int = 0,
    sessions: SessionSettings | None = None,
) -> TrainingWindows:
    """Windows over the training events in the form the model's context allows, with the targets of the settings.

    Raises:
        DataError: there is no training event, or none that is a target, or no list.
        ConfigError: the model has pathways, and what was fitted for them is not given; or settings of targets that
            contradict them or the data; or it is one of lists, and their rules are not given.
    """
    targets = targets or TargetSettings()
    windows = _cut(histories, model, targets, seed, sessions)
    if len(windows) == 0:
        raise DataError("training: found no training event, expected at least one. Lower the filters or add data.")
    training = histories.training()
    weights = event_weights(training, targets.weights)
    if weights is not None:
        windows = replace(windows, weights=weights).with_targets()
    if targets.future is not None:
        windows = replace(windows, future=FutureTargets.of(training, targets.future, weights, seed))
    if model.encoder.pathways is None:
        return windows
    if pathways is None:
        raise ConfigError("training: found a model with pathways and no features for it. Give those it was built with.")
    if targets.future is not None and model.encoder.pathways.returns is not None:
        raise ConfigError(
            "training.targets.future: found beside model.pathways.returns, which are those of the next event; "
            "leave either out."
        )
    source = EventSource(training, pathways.profiles)
    return replace(windows, pathways=WindowPathways(model.encoder.pathways.reader(), source))


def _cut(
    histories: Histories, model: OneRec, targets: TargetSettings, seed: int, sessions: SessionSettings | None
) -> TrainingWindows:
    max_items, many_targets = model.config.max_history_items, model.config.many_targets
    if model.config.session_items:
        if sessions is None:
            raise ConfigError(
                "training: found a model of lists and data of single events, expected the rules of lists."
            )
        return session_windows(histories, sessions, model.config.session_items, max_items)
    if targets.sliding is not None:
        return sliding_windows(histories, max_items, many_targets, targets.sliding.newest_every, seed)
    return (many_target_windows if many_targets else one_target_windows)(histories, max_items)


def load_pretrained(folder: Path, table: SemanticIdTable) -> OneRec:
    """Load the stage's model in evaluation mode.

    Raises:
        ArtifactError: the folder is no finished pre-training, or its model was trained on another ID table.
    """
    read_manifest(folder, ARTIFACT_KIND)
    model: OneRec = OneRec.from_pretrained(folder)
    require_same_hash(
        f"{folder}: its model was trained on another ID table",
        model.config.table_hash,
        table.content_hash,
        "Use the tokenizer it was trained with, or train again.",
    )
    return model.eval()


def _publish(
    best: Path,
    folder: Path,
    trainer: OneRecTrainer,
    inputs: dict[str, str],
    config_hash: str,
    table: SemanticIdTable,
) -> None:
    restore_folder(best)  # a kill between its two renames
    if not best.is_dir():
        raise ArtifactError(f"{best}: no validated weights were found. Delete {best.parent} and train again.")
    with atomic_folder(folder) as temporary:
        shutil.copytree(best, temporary, dirs_exist_ok=True)
        (temporary / "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
        details = {"minutes": trainer.training_minutes, "precision": trainer.precision}
        write_manifest(temporary, ARTIFACT_KIND, {**inputs, "table": table.content_hash}, config_hash, details)
