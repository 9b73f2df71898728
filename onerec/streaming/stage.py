"""The stream stage: a base trained as ever, then one partition after the other, each evaluated before it is trained on.

runs/<name>/stream/  partitions/  base/       the log cut by time, and a run of its older part (unless cut already)
                     days/<partition>/        state after it: histories, catalogue, tokenizer, model, moments, figures
                     work/<partition>/        what a stopped partition goes on from
                     metrics.json report.html bundle/ stream.yaml

A partition is read once. What follows needs the state before it alone, which is refused where it belongs to another
base, tokenizer or partition. The frozen model is the base's, over the same growing catalogue and histories.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers.trainer_utils import set_seed

from kernels.denormals import flushed_denormals
from onerec.data.settings import DataSettings
from onerec.data.sources import find_source
from onerec.errors import ConfigError
from onerec.pipeline import Pipeline
from onerec.plain_training import OF_THE_MODEL, OF_THE_STATE, require_plain
from onerec.streaming import arrival as arrivals
from onerec.streaming.arrival import Catalogue, receive
from onerec.streaming.figures import publish_figures
from onerec.streaming.last import write_last
from onerec.streaming.partitions import BASE, Partition, base_settings, cut_hash, cut_log, find_partitions
from onerec.streaming.partitions import KIND as PARTITIONS_KIND
from onerec.streaming.settings import StreamSettings
from onerec.streaming.state import KIND, MOMENTS, Log, StreamState, require_inputs
from onerec.streaming.trainer import PartitionTrainer, train_on
from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from tokenizer.artifacts import (
    MANIFEST_NAME,
    atomic_file,
    atomic_folder,
    hash_settings,
    read_manifest,
    require_same_hash,
    restore_folder,
    write_json,
    write_manifest,
)
from tokenizer.settings import dump_yaml, load_settings

_BOUND, _TOKENIZER = "stream.yaml", "tokenizer"


@flushed_denormals()
def stream(pipeline: Pipeline, settings: StreamSettings) -> None:
    """Stream all partitions that are not finished yet, and write the figures of all.

    Raises:
        ConfigError: settings that the stream cannot follow, or a stream of others in the folder.
        DataError: events without times, or a partition that breaks its schema.
        ArtifactError: a state of another base, tokenizer, partition or config.
    """
    require_plain(pipeline.config, "stream", (*OF_THE_MODEL, *OF_THE_STATE))
    folder = pipeline.folder / "stream"
    with pipeline.processes.main_process_first():
        _bind(folder, settings)
    base, partitions = _open(pipeline, settings, folder)
    for stage in (base.prepare_data, base.fit_tokenizer):
        pipeline.run_for_everyone(stage)
    if not base.data.schema.has_time:
        raise ConfigError("stream: the base's events have an order only, no time; expected timestamps.")
    base.pretrain()
    state = StreamState.of_base(base)
    for number, partition in enumerate(partitions):
        day = _Day(pipeline, base, settings, partition, number, state)
        pipeline.console.rule(f"[bold]{partition.name} ({number + 1} of {len(partitions)})")
        state = day.finish()
    if pipeline.processes.is_main_process:
        days = [folder / "days" / partition.name for partition in partitions]
        publish_figures(days, folder, pipeline.config.evaluation, pipeline.console)
        write_last(base, state, days[-1], folder / "bundle", pipeline.config, _terms(folder, settings))


@dataclass(frozen=True)
class _Day:
    """One partition and the state before it."""

    pipeline: Pipeline
    base: Pipeline
    settings: StreamSettings
    partition: Partition
    number: int
    before: StreamState

    @property
    def folder(self) -> Path:
        return self.pipeline.folder / "stream" / "days" / self.partition.name

    @property
    def work(self) -> Path:
        return self.pipeline.folder / "stream" / "work" / self.partition.name

    def origin(self) -> dict[str, str]:
        """Content hashes of what the state after the partition follows from, but for the partition itself."""
        return {
            "base": read_manifest(self.base.folder / "pretrain", PRETRAIN_KIND, verify_files=False).content_hash,
            "tokenizer": read_manifest(self.base.folder / _TOKENIZER, _TOKENIZER, verify_files=False).content_hash,
            "state": self.before.content_hash,
        }

    def inputs(self) -> dict[str, str]:
        """The same with the partition, which is read for it."""
        return {**self.origin(), "partition": self.partition.content_hash}

    def finish(self) -> StreamState:
        """The state after the partition: as it was found, or as it is now made."""
        restore_folder(self.folder)
        if not (self.folder / MANIFEST_NAME).is_file():
            self.pipeline.run_for_everyone(self._receive)
            trainer = self._train()
            if trainer.is_world_process_zero():
                self._publish(trainer)
            trainer.accelerator.wait_for_everyone()
        else:
            self.pipeline.console.print("found its state, kept")
            if self.pipeline.processes.is_main_process:
                shutil.rmtree(self.work, ignore_errors=True)  # of a kill between the two
        require_inputs(read_manifest(self.folder, KIND, verify_files=False), self.origin(), self.folder)
        return StreamState.load(self.folder)

    def _receive(self) -> None:
        folder, inputs = self.work / "arrival", self.inputs()
        restore_folder(folder)
        if not (folder / MANIFEST_NAME).is_file():
            receive(self.base, self.before, self.partition, inputs, folder)
        require_inputs(read_manifest(folder, arrivals.KIND), inputs, folder)

    def _train(self) -> PartitionTrainer:
        arrival, seed = self.work / "arrival", self.pipeline.config.seed + self.number + 1
        set_seed(seed)
        model = Catalogue(arrival / _TOKENIZER).grow(self.before.load_model()).to(self.pipeline.processes.device)
        moments = None if self.before.moments is None else load_file(self.before.moments)
        changes = {
            "epochs": self.settings.epochs,
            "evaluate_every_epochs": self.settings.epochs,
            "learning_rate": self.settings.learning_rate,
            "schedule": "constant",
            "warmup_steps": self.settings.warmup_steps if moments is None else 0,
        }
        training = self.pipeline.config.training.model_copy(update=changes)
        histories = Log.load(arrival).histories
        return train_on(histories, model, training, self.work / "checkpoints", seed, moments)

    def _publish(self, trainer: PartitionTrainer) -> None:
        """Put the state after the partition in its place, under one manifest."""
        arrival = self.work / "arrival"
        counts = read_manifest(arrival, arrivals.KIND).details
        with atomic_folder(self.folder) as temporary:
            for part in (_TOKENIZER, "evaluations"):
                shutil.copytree(arrival / part, temporary / part)
            Log.load(arrival).trained().save(temporary)
            trainer.trained_model.save_pretrained(temporary)
            if self.settings.keep_moments:
                save_file(trainer.moments(), temporary / MOMENTS)
            write_json(temporary / "log_history.json", [line for line in trainer.state.log_history if "loss" in line])
            details = {**counts, "minutes": trainer.training_minutes}
            write_manifest(temporary, KIND, self.inputs(), hash_settings(self.settings), details)
        shutil.rmtree(self.work)


def _open(pipeline: Pipeline, settings: StreamSettings, folder: Path) -> tuple[Pipeline, list[Partition]]:
    """The run that is the base, and the partitions; those that are finished may be gone."""
    base, source = pipeline, settings.partitions
    if source is None:
        source = folder / "partitions"
        pipeline.run_for_everyone(lambda: _cut(pipeline.config.data, settings, source))
        data = base_settings(pipeline.config.data, source)
        config = pipeline.config.model_copy(update={"name": BASE, "data": data})
        base = Pipeline.open(config, folder, pipeline.console)
    finished = {path.parent.name for path in (folder / "days").glob(f"[!.]*/{MANIFEST_NAME}")}
    names = finished | {partition.name for partition in find_partitions(source)}
    return base, [Partition(source / name) for name in sorted(names)[: settings.max_partitions]]


def _cut(data: DataSettings, settings: StreamSettings, folder: Path) -> None:
    if not (folder / MANIFEST_NAME).is_file():
        cut_log(find_source(data.source).load(data), data, settings, folder)
    found = read_manifest(folder, PARTITIONS_KIND, verify_files=False).config_hash
    require_same_hash(f"{folder}: cut by another config", found, cut_hash(data, settings), "Delete the stream folder.")


def _terms(folder: Path, settings: StreamSettings) -> dict[str, str]:
    """Source, licence and citation of a log that was cut here."""
    if settings.partitions is not None:
        return {}
    terms: dict[str, str] = read_manifest(folder / "partitions", PARTITIONS_KIND, verify_files=False).details["terms"]
    return terms


def _bind(folder: Path, settings: StreamSettings) -> None:
    """Bind the folder, once there is something in it, to the settings: all but how many partitions are streamed."""
    stored, settings = folder / _BOUND, settings.model_copy(update={"max_partitions": None})
    if not any((folder / part).is_dir() for part in ("partitions", "work", "days")):
        with atomic_file(stored) as temporary:
            temporary.write_text(dump_yaml(settings), encoding="utf-8")
    elif load_settings(StreamSettings, stored) != settings:
        raise ConfigError(
            f"{folder} holds a stream of another stream section, see {stored}. Put the section back, or delete it."
        )
