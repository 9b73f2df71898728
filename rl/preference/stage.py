"""The reward stage: prepared events and an ID table in, a reward model and its report out.

runs/<name>/reward/  weights and config, metrics.json, log_history.json, reward.yaml, manifest.json

It takes seconds to minutes and is the main process's alone; one that was stopped begins again.
"""

from pathlib import Path
from typing import Any

from transformers.trainer_utils import set_seed

from kernels.denormals import flushed_denormals
from onerec.data.histories import Histories
from onerec.errors import ConfigError
from onerec.model.preference.artefact import KIND
from onerec.model.preference.contexts import EventReader
from onerec.model.preference.network import PSCORE, PreferenceConfig, PreferenceModel
from onerec.model.preference.signals import Signal, require_known
from onerec.pipeline import Pipeline
from onerec.training.pretraining import load_pretrained
from rl.preference.baselines import fit_matrix_factorisation, popularity_scores
from rl.preference.evaluation import predict, summarize
from rl.preference.events import ExampleRows, split_rows
from rl.preference.features import item_features
from rl.preference.settings import RewardModelSettings
from rl.preference.signals import choose_signals
from rl.preference.training import CandidateSampler, fit_model
from rl.rewards.preference import PreferenceReward
from rl.selection import measure_selection
from tokenizer.artifacts import (
    MANIFEST_NAME,
    atomic_folder,
    hash_settings,
    read_manifest,
    require_same_hash,
    write_json,
    write_manifest,
)
from tokenizer.settings import dump_yaml, load_settings

_SETTINGS_FILE = "reward.yaml"


@flushed_denormals()
def train_reward(pipeline: Pipeline, settings: RewardModelSettings) -> None:
    """Train the run's reward model and store it with its report; a finished one is kept.

    Raises:
        ConfigError: the run holds a reward model of another reward section, or settings that do not fit the events.
        DataError: feedback that is missing or constant, or too few events.
        ArtifactError: the data or the ID table are missing, or a finished model is of others.
        OneRecError: the loss is no number.
    """
    folder = pipeline.folder / "reward"
    inputs = {"data": pipeline.data.manifest.content_hash, "table": pipeline.table.content_hash}
    if (folder / MANIFEST_NAME).is_file():
        _require_finished(folder, inputs, settings)
        pipeline.console.print("reward: found the finished artefact, kept")
        return
    set_seed(pipeline.config.seed)
    training = pipeline.data.histories.training()
    rows = split_rows(training, pipeline.data.schema.has_time, settings)
    signals = _signals(pipeline, training, rows, settings)
    model = _build_model(pipeline, signals, settings)
    reader = EventReader(training, signals, settings.backbone.max_history_items)
    names = [signal.name for signal in signals]
    sampler = CandidateSampler(reader, pipeline.data.num_items, names, settings.towers.sampled_negatives)
    log = fit_model(model, reader, sampler, rows, settings, pipeline.config.seed)
    metrics = _report(pipeline, model, reader, sampler, rows, settings)
    _print_report(pipeline, metrics)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        write_json(temporary / "metrics.json", metrics)
        write_json(temporary / "log_history.json", log)
        (temporary / _SETTINGS_FILE).write_text(dump_yaml(settings), encoding="utf-8")
        details = {"towers": names, "selection": settings.selection.model_dump()}
        write_manifest(temporary, KIND, inputs, hash_settings(settings), details)


def _signals(
    pipeline: Pipeline, training: Histories, rows: ExampleRows, settings: RewardModelSettings
) -> tuple[Signal, ...]:
    """The columns that get a tower, by the events to train on."""
    feedback = {name: values[rows.train] for name, values in training.feedback.items()}
    kinds = pipeline.data.schema.feedback
    signals, notes = choose_signals(feedback, training.items[rows.train], kinds, settings.towers)
    for note in notes:
        pipeline.console.print(f"reward: no tower for {note}")
    require_known("reward.selection.weights", settings.selection.weights, [*(s.name for s in signals), PSCORE])
    return signals


def _build_model(pipeline: Pipeline, signals: tuple[Signal, ...], settings: RewardModelSettings) -> PreferenceModel:
    data, table = pipeline.data, pipeline.table
    features_NC, sizes = item_features(data.items, table.codes_NL, data.schema.category_columns)
    config = PreferenceConfig(
        num_items=data.num_items,
        feature_sizes=sizes,
        signals=[signal.model_dump(mode="json") for signal in signals],
        backbone=settings.backbone.model_dump(),
        watch_time=settings.watch_time.model_dump(),
        tower_width=settings.tower_width,
        catalogue_hash=table.catalogue_hash,
    )
    model = PreferenceModel(config)
    model.set_features(features_NC)
    return model.to(pipeline.processes.device)


def _report(
    pipeline: Pipeline,
    model: PreferenceModel,
    reader: EventReader,
    sampler: CandidateSampler,
    rows: ExampleRows,
    settings: RewardModelSettings,
) -> dict[str, Any]:
    """Everything in metrics.json."""
    num_users, num_items, signals = pipeline.data.num_users, pipeline.data.num_items, model.signals
    popularity_N = popularity_scores(reader.histories, rows, num_items)
    rival = fit_matrix_factorisation(num_users, num_items, signals, sampler, rows, pipeline.config.seed)
    held_out = predict(model, reader, sampler, rows.test, popularity_N, rival)
    metrics: dict[str, Any] = {
        "backbone": settings.backbone.kind,
        "parameters": model.num_parameters(),
        "events": {"train": len(rows.train), "validation": len(rows.validation), "test": len(rows.test)},
        "towers": summarize(held_out, signals),
    }
    pretrained = pipeline.folder / "pretrain"
    if (pretrained / MANIFEST_NAME).is_file():
        metrics["selection"] = _selection(pipeline, model, pretrained, settings)
    return metrics


def _selection(
    pipeline: Pipeline, model: PreferenceModel, pretrained: Path, settings: RewardModelSettings
) -> dict[str, Any]:
    generator = load_pretrained(pretrained, pipeline.table).to(pipeline.processes.device)
    recommender, selection = pipeline.recommender(generator), settings.selection
    judge = PreferenceReward(model, pipeline.data.histories, selection.weights, "reward.selection.weights")
    evaluation, num_beams = pipeline.config.evaluation, recommender.num_beams
    figures = measure_selection(recommender, judge, pipeline.data, evaluation, num_beams, selection.share)
    return {"weights": selection.weights, **figures}


def _print_report(pipeline: Pipeline, metrics: dict[str, Any]) -> None:
    for name, figures in metrics["towers"].items():
        shown = {"AUC": figures.get("auc"), "GAUC": figures.get("gauc"), **figures.get("gauc_of", {})}
        line = ", ".join(f"{what} {'-' if value is None else format(value, '.4f')}" for what, value in shown.items())
        pipeline.console.print(f"reward: {name}: {line}")
    for name in ("beams", "selected"):
        if "selection" in metrics:
            found = metrics["selection"][name]
            line = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items() if metric.endswith("@10"))
            pipeline.console.print(f"reward: {name}: {line}")


def _require_finished(folder: Path, inputs: dict[str, str], settings: RewardModelSettings) -> None:
    """Refuse a finished artefact of other settings, data or ID table."""
    manifest = read_manifest(folder, KIND)
    found, expected = (
        hash_settings(load_settings(RewardModelSettings, folder / _SETTINGS_FILE)),
        hash_settings(settings),
    )
    if found != expected:
        raise ConfigError(
            f"{folder} holds a reward model of another reward section (found hash {found}, expected {expected}). "
            "Delete the folder, or put the section back."
        )
    for name, hash_now in inputs.items():
        remedy = "Delete the folder and train the reward model again."
        require_same_hash(
            f"{folder}: it was trained on another {name} artefact", manifest.inputs[name], hash_now, remedy
        )
