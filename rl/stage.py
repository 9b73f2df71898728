"""The align stage: a pre-trained model in, the last weights that kept every stop rule out.

runs/<name>/align/              weights, log_history.json, metrics.json, report.html, align.yaml, manifest.json
runs/<name>/align-bundle/       all that serving the aligned model needs
runs/<name>/align-checkpoints/  what a stopped training goes on from
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers.trainer_utils import set_seed

from kernels.denormals import flushed_denormals
from onerec.bundle import write_bundle
from onerec.data.histories import Split
from onerec.errors import ConfigError
from onerec.evaluation.evaluator import Evaluation, evaluate
from onerec.evaluation.results import Run
from onerec.model.onerec import OneRec
from onerec.model.preference.artefact import KIND as REWARD_KIND
from onerec.model.preference.artefact import load_reward_model
from onerec.pipeline import Pipeline
from onerec.training.checkpoints import latest_checkpoint
from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from onerec.training.pretraining import load_pretrained, training_windows
from rl.experience import ExperienceMaker
from rl.generation import Generate, RolloutPlan
from rl.monitor import Baseline, probe
from rl.policy import Policy
from rl.report import write_alignment_page
from rl.rewards.combined import ItemRewards, Judge
from rl.rewards.future import FutureReward
from rl.rewards.preference import PreferenceReward, PreferenceRewardSettings
from rl.settings import AlignSettings
from rl.supervision import SupervisedWindows, kept_targets
from rl.trainer import AlignTrainer, Overseer, training_arguments
from rl.workers import started_workers
from tokenizer.artifacts import (
    MANIFEST_NAME,
    atomic_file,
    atomic_folder,
    explained_os_errors,
    hash_settings,
    read_manifest,
    require_same_hash,
    restore_folder,
    write_json,
    write_manifest,
)
from tokenizer.settings import dump_yaml, load_settings

ARTIFACT_KIND = "align"
_GOOD, _BOUND = "good", "align.yaml"
_FROM = {"pretrain": "from another pre-training", "reward": "by another reward model"}


@flushed_denormals()
def align(pipeline: Pipeline, settings: AlignSettings) -> None:
    """Align the run's pre-trained model and store the result beside it; a finished one is kept.

    Raises:
        ConfigError: the run already holds an alignment of another config, or settings that do not fit the data.
        ArtifactError: the pre-training is missing, the finished artefact is of another one, or the reference was
            trained on another ID table.
        OneRecError: rewards that are NaN, or constant within every group.
    """
    folder, work = pipeline.folder / "align", pipeline.folder / "align-checkpoints"
    if (folder / MANIFEST_NAME).is_file():
        _require_finished(folder, pipeline, settings)
        pipeline.console.print("align: found the finished artefact, kept")
        if pipeline.processes.is_main_process:
            _keep_bundle(pipeline, settings)
        return
    with pipeline.processes.main_process_first():
        _bind(work, settings)
    set_seed(pipeline.config.seed)
    alignment = _Alignment.open(pipeline, settings)
    with alignment.generation() as generate:
        trainer = alignment.trainer(work, generate)
        resume_from = latest_checkpoint(work)
        with explained_os_errors(work):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if trainer.stop_reason is not None:
        pipeline.console.print(f"align: stopped, {trainer.stop_reason}; the last good weights are kept")
    if trainer.is_world_process_zero():
        alignment.publish(work / _GOOD, folder, trainer)
    trainer.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class _Alignment:
    """The parts of one alignment."""

    pipeline: Pipeline
    settings: AlignSettings
    model: OneRec
    reference: OneRec
    plan: RolloutPlan

    @classmethod
    def open(cls, pipeline: Pipeline, settings: AlignSettings) -> "_Alignment":
        pretrained = pipeline.folder / "pretrain"
        device = pipeline.processes.device
        model = load_pretrained(pretrained, pipeline.table).to(device)
        if model.config.session_items:
            raise ConfigError(
                f"align: found a model of lists of {model.config.session_items} items, expected one of single items. "
                "Train it with model.session_items=0."
            )
        reference = load_pretrained(settings.objective.reference or pretrained, pipeline.table).to(device)
        plan = RolloutPlan.open(pipeline, model, settings)
        return cls(pipeline, settings, model, reference.requires_grad_(False), plan)

    @contextmanager
    def generation(self) -> Iterator[Generate]:
        """What generates rollouts: workers where the config asks for them, else the trainer itself."""
        if self.settings.rollout.workers:
            with started_workers(self.pipeline, self.plan) as workers:
                yield workers
            return
        processes = self.pipeline.processes
        share = {"share": processes.process_index, "num_shares": processes.num_processes}
        yield partial(self.plan.generate, **share)

    def trainer(self, work: Path, generate: Generate) -> AlignTrainer:
        """The trainer, with everything it measures by."""
        settings, seed = self.settings, self.pipeline.config.seed
        args = training_arguments(settings, work, seed)
        table, items = self.pipeline.table, self.pipeline.data.items
        rewards = ItemRewards(settings.reward, table.codes_NL, items, list(self._judges()))
        shard = (args.process_index, args.world_size)
        maker = ExperienceMaker(self.plan, generate, rewards, *shard)
        windows = self._supervised_windows(*shard)
        policy = Policy(self.model, self.plan.trie, settings)
        return AlignTrainer(policy, self.reference, maker, windows, settings, self._overseer(work), args)

    def _judges(self) -> Iterator[tuple[float, Judge]]:
        """The reward model and the users' later events, where the config asks for them."""
        training, reward = self.plan.prompts.training, self.settings.reward
        if reward.preference is not None:
            wanted = reward.preference
            model = load_reward_model(_reward_folder(self.pipeline, wanted), self.pipeline.table)
            model.to(self.pipeline.processes.device)
            key = "align.reward.preference.weights"
            yield wanted.weight, PreferenceReward(model, training, wanted.weights, key)
        if reward.future is not None:
            yield reward.future.weight, FutureReward(training, reward.future)

    def publish(self, good: Path, folder: Path, trainer: AlignTrainer) -> None:
        """Write a bundle to serve, then the artefact: weights, log, figures before and after, and the manifest."""
        restore_folder(good)  # a kill between its two renames
        pipeline, device = self.pipeline, self.pipeline.processes.device
        pretrained = load_pretrained(pipeline.folder / "pretrain", pipeline.table).to(device)
        aligned: OneRec = OneRec.from_pretrained(good).eval().to(device)
        before, after = _evaluate(pipeline, pretrained), _evaluate(pipeline, aligned)
        inputs = {
            "data": pipeline.data.manifest.content_hash,
            "table": pipeline.table.content_hash,
            **_trained_inputs(pipeline, self.settings),
        }
        _write_bundle(pipeline, self.settings, aligned, after, trainer.state.log_history, inputs)
        step = json.loads((good / "step.json").read_text(encoding="utf-8"))["step"]
        details = {"step": step, "steps_trained": trainer.state.global_step, "stop_reason": trainer.stop_reason}
        with atomic_folder(folder) as temporary:
            shutil.copytree(good, temporary, dirs_exist_ok=True)
            log = trainer.state.log_history
            write_json(temporary / "log_history.json", log)
            write_alignment_page(temporary / "report.html", pipeline.config.name, log, before, after, details)
            figures = {"pretrained": before, "aligned": after}
            write_json(
                temporary / "metrics.json",
                {
                    model: {name: evaluation.to_dict() for name, evaluation in evaluations.items()}
                    for model, evaluations in figures.items()
                },
            )
            (temporary / _BOUND).write_text(dump_yaml(self.settings), encoding="utf-8")
            write_manifest(temporary, ARTIFACT_KIND, inputs, hash_settings(self.settings), details)
        self._print_outcome(before, after, step)

    def _print_outcome(self, before: dict[str, Evaluation], after: dict[str, Evaluation], step: int) -> None:
        metric, console = self.pipeline.config.training.selection_metric, self.pipeline.console
        for name in before:
            found = before[name].metrics[metric], after[name].metrics[metric]
            console.print(f"{name} {metric}: {found[0]:.4f} before, {found[1]:.4f} after")
        console.print(f"align: the monitor's figures are in {self.pipeline.folder / 'align' / 'report.html'}")
        console.print(f"align: weights of step {step}. Serve them:  python serve.py --bundle {_bundle(self.pipeline)}")

    def _supervised_windows(self, rank: int, num_processes: int) -> SupervisedWindows | None:
        settings = self.settings.supervised
        if not settings.weight:
            return None
        windows = training_windows(self.pipeline.data.histories, self.model, self.pipeline.fit_pathways())
        kept_N = kept_targets(self.plan.prompts.training, settings)
        positions, seed = settings.max_positions_per_step, self.pipeline.config.seed
        return SupervisedWindows(windows, kept_N, self.settings.steps, positions, seed, rank, num_processes)

    def _overseer(self, work: Path) -> Overseer:
        chooser = np.random.default_rng(self.pipeline.config.seed)
        prompts, trie, seed = self.plan.prompts, self.plan.trie, self.plan.seed
        num_probes = min(self.settings.monitor.probe_prompts, len(prompts.rows))
        probed = prompts.batch(chooser.choice(prompts.rows, num_probes, replace=False), self.model.device)
        metric = self.pipeline.config.training.selection_metric

        def measure(model: OneRec, reference: OneRec) -> dict[str, float]:
            held_out = {f"eval_{name}": value for name, value in self._held_out(model).items()}
            return {**held_out, **probe(model, reference, probed, trie, seed)}

        def keep(model: OneRec, step: int) -> None:
            with atomic_folder(work / _GOOD) as temporary:
                model.save_pretrained(temporary)
                write_json(temporary / "step.json", {"step": step})

        first = measure(self.model, self.reference)
        if self.pipeline.processes.is_main_process and latest_checkpoint(work) is None:
            keep(self.model, 0)
        baseline = Baseline(metric=first[f"eval_{metric}"], legality=first["legality"])
        counts_N = prompts.training.item_counts(self.pipeline.data.num_items)
        return Overseer(measure, keep, baseline, metric, counts_N)

    def _held_out(self, model: OneRec) -> dict[str, float]:
        """Validation metrics on the monitor's sample of users."""
        changes = {
            "protocols": ("seen_allowed",),
            "max_rows": self.settings.monitor.users or self.pipeline.config.evaluation.max_rows,
            "bootstrap_samples": 1,
        }
        settings = self.pipeline.config.evaluation.model_copy(update=changes)
        data = self.pipeline.data
        evaluations = evaluate(self.pipeline.recommender(model), data, Split.VALIDATION, settings, False)
        evaluation = evaluations["validation"]
        return {**evaluation.metrics, **evaluation.exposure}


def _evaluate(pipeline: Pipeline, model: OneRec) -> dict[str, Evaluation]:
    """Validation and test under every protocol of the run's config."""
    recommender, settings = pipeline.recommender(model), pipeline.config.evaluation
    validation, test = (evaluate(recommender, pipeline.data, s, settings) for s in (Split.VALIDATION, Split.TEST))
    return validation | test


# ---- the bundle --------------------------------------------------------------------------------------------------


def _bundle(pipeline: Pipeline) -> Path:
    return pipeline.folder / "align-bundle"


def _write_bundle(
    pipeline: Pipeline,
    settings: AlignSettings,
    aligned: OneRec,
    evaluations: dict[str, Evaluation],
    log: list[dict[str, float]],
    inputs: dict[str, str],
) -> None:
    minutes = log[-1]["train_runtime"] / 60
    results = pipeline.results_beside(Run(pipeline.config.seed, evaluations, minutes, aligned.num_parameters()))
    parts = (aligned, pipeline.table, pipeline.data, results, pipeline.config)
    reward = _bundled_reward(pipeline, settings)
    write_bundle(_bundle(pipeline), *parts, inputs, pipeline.folder / "tokenizer", reward)


def _keep_bundle(pipeline: Pipeline, settings: AlignSettings) -> None:
    """Give the bundle of a kept alignment the reward model trained since; write it again where it was deleted."""
    if (_bundle(pipeline) / MANIFEST_NAME).is_file():
        pipeline.complete_bundle(_bundle(pipeline), _bundled_reward(pipeline, settings))
        return
    folder = pipeline.folder / "align"
    aligned: OneRec = OneRec.from_pretrained(folder).eval().to(pipeline.processes.device)
    log = json.loads((folder / "log_history.json").read_text(encoding="utf-8"))
    inputs = read_manifest(folder, ARTIFACT_KIND).inputs
    _write_bundle(pipeline, settings, aligned, _evaluate(pipeline, aligned), log, inputs)


def _bundled_reward(pipeline: Pipeline, settings: AlignSettings) -> Path | None:
    """The reward model that serving may select by: the one aligned with, else the run's own, where there is one."""
    wanted = settings.reward.preference
    return pipeline.artefacts.reward if wanted is None else _reward_folder(pipeline, wanted)


# ---- what is kept and what is refused ----------------------------------------------------------------------------


def _require_finished(folder: Path, pipeline: Pipeline, settings: AlignSettings) -> None:
    """Refuse a finished artefact of other settings or of another pre-training."""
    manifest = read_manifest(folder, ARTIFACT_KIND)
    _require_same(hash_settings(load_settings(AlignSettings, folder / _BOUND)), settings, folder)
    for name, expected in _trained_inputs(pipeline, settings).items():
        require_same_hash(
            f"{folder}: it was aligned {_FROM[name]}",
            manifest.inputs[name],
            expected,
            "Delete the folder and align-checkpoints beside it, and align again.",
        )


def _trained_inputs(pipeline: Pipeline, settings: AlignSettings) -> dict[str, str]:
    """Content hashes of the models that alignment reads: the pre-trained one, and the reward model where asked for."""
    inputs = {"pretrain": read_manifest(pipeline.folder / "pretrain", PRETRAIN_KIND).content_hash}
    wanted = settings.reward.preference
    if wanted is not None:
        inputs["reward"] = read_manifest(_reward_folder(pipeline, wanted), REWARD_KIND).content_hash
    return inputs


def _reward_folder(pipeline: Pipeline, wanted: PreferenceRewardSettings) -> Path:
    return wanted.folder or pipeline.folder / "reward"


def _bind(work: Path, settings: AlignSettings) -> None:
    """Bind the work folder to its settings; refuse others than those of a training that can be continued."""
    stored = work / _BOUND
    if stored.is_file() and latest_checkpoint(work) is not None:
        _require_same(hash_settings(load_settings(AlignSettings, stored)), settings, work)
        return
    with atomic_file(stored) as temporary:
        temporary.write_text(dump_yaml(settings), encoding="utf-8")


def _require_same(found_hash: str, settings: AlignSettings, folder: Path) -> None:
    expected = hash_settings(settings)
    if found_hash != expected:
        raise ConfigError(
            f"{folder} holds an alignment of another align section (found hash {found_hash}, expected {expected}). "
            "Delete the folder and align-checkpoints beside it, or put the section back."
        )
