"""A run from log to bundle: each stage reads the artefacts of the ones before it and can be run alone.

    runs/<name>/  config.yaml  data/  tokenizer/  pretrain/  evaluations/<recommender>/  bundle/  report/

A finished artefact of the same config is kept, so a run that was stopped goes on where it was; one that was made from
other artefacts than the run holds now is refused. Under torchrun all processes train and evaluate; every other stage is
the main process's alone.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from onerec.baselines.fitting import baseline_fits
from onerec.bundle import KIND as BUNDLE_KIND
from onerec.bundle import add_reward, write_bundle
from onerec.config import RunConfig
from onerec.data.features import FittedPathways, fit_pathways, resolve_features, user_profiles
from onerec.data.histories import Split
from onerec.data.pathways import EventSource
from onerec.data.prepared import PreparedData, prepare
from onerec.data.sessions import check_sessions
from onerec.data.settings import SessionSettings
from onerec.data.targets import check_targets
from onerec.data.titles import item_titles
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.sessions import ListRecommender
from onerec.errors import OneRecError
from onerec.evaluation.evaluator import Evaluation, evaluate
from onerec.evaluation.exactness import shares_equal_to_exact
from onerec.evaluation.examples import choose_examples
from onerec.evaluation.recommender import Recommender
from onerec.evaluation.report import ReportContents, write_report
from onerec.evaluation.results import PROTOCOLS, Results, Run, summarize_runs, write_results
from onerec.evaluation.runs import ARTIFACT_KIND as EVALUATION_KIND
from onerec.evaluation.runs import load_run, save_run
from onerec.evaluation.sessions import ARTIFACT_KIND as LISTS_KIND
from onerec.evaluation.sessions import ListEvaluation, compare_lists, lists_table, save_lists
from onerec.evaluation.tables import print_results
from onerec.model.onerec import OneRec
from onerec.model.quantised import require_hardware
from onerec.run_artefacts import BEAM_ALONE, LISTS, RunArtefacts
from onerec.run_recommender import run_recommender
from onerec.stored_config import require_same_config
from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from onerec.training.pretraining import Fitted, load_pretrained, pretrain
from onerec.training.processes import join_processes
from tokenizer.artifacts import (
    atomic_file,
    code_revision,
    hash_settings,
    package_versions,
    read_manifest,
)
from tokenizer.fit import fit_tokenizer, load_item_vectors, load_pieces
from tokenizer.sequences import Sequences
from tokenizer.settings import dump_yaml
from tokenizer.table import SemanticIdTable

STAGES = ("data", "tokenizer", "pretrain", "evaluate", "bundle", "report")
_JOINT_STAGES = ("pretrain", "evaluate")  # in which all processes work; before them, the main one for everyone


@dataclass(frozen=True)
class Pipeline:
    """The stages of one run in its folder."""

    config: RunConfig
    folder: Path
    console: Console
    processes: PartialState

    @classmethod
    def open(cls, config: RunConfig, root: Path, console: Console | None = None) -> "Pipeline":
        """Enter the run's folder, or make it.

        Raises:
            ConfigError: the folder holds a run of another config.
            ArtifactError: the folder cannot be written.
        """
        folder, processes = root / config.name, join_processes()
        stored = folder / "config.yaml"
        with processes.main_process_first():
            if stored.exists():
                require_same_config(stored, config)
            else:
                with atomic_file(stored) as temporary:
                    temporary.write_text(dump_yaml(config), encoding="utf-8")
        return cls(config, folder, console or Console(quiet=not processes.is_main_process), processes)

    def run(self, stage: str = "all") -> None:
        """Run one stage, or every stage in turn."""
        stages: dict[str, Callable[[], object]] = {
            "data": self.prepare_data,
            "tokenizer": self.fit_tokenizer,
            "pretrain": self.pretrain,
            "evaluate": self.evaluate,
            "bundle": self.write_bundle,
            "report": self.write_report,
        }
        chosen = STAGES if stage == "all" else (stage,)
        for place, name in enumerate(chosen):
            self.console.rule(f"[bold]{name}")
            if name in _JOINT_STAGES:
                stages[name]()
            elif set(_JOINT_STAGES) & set(chosen[place:]):
                self.run_for_everyone(stages[name])
            elif self.processes.is_main_process:
                stages[name]()

    def run_for_everyone(self, stage: Callable[[], object]) -> None:
        """Let the main process do what the others will read; if it fails, all of them fail with its error."""
        told: list[OneRecError | None] = [None]
        if self.processes.is_main_process:
            try:
                stage()
            except OneRecError as error:
                told = [error]
        failure = broadcast_object_list(told)[0]
        if failure is not None:
            raise failure

    @cached_property
    def data(self) -> PreparedData:
        """The prepared data."""
        return PreparedData.load(self.folder / "data")

    @cached_property
    def table(self) -> SemanticIdTable:
        """The ID table of the prepared catalogue."""
        table = SemanticIdTable.load(self.folder / "tokenizer", item_ids=self._item_ids())
        self.artefacts.require_inputs("tokenizer", "tokenizer")
        return table

    @cached_property
    def model(self) -> OneRec:
        """The pre-trained model."""
        self.artefacts.require_inputs("pretrain", PRETRAIN_KIND)
        return load_pretrained(self.folder / "pretrain", self.table).to(self.processes.device)

    @cached_property
    def artefacts(self) -> RunArtefacts:
        """What the run has finished, and from what."""
        return RunArtefacts(self.folder, self.console)

    def prepare_data(self) -> None:
        """Read, check, filter and split the events, and say what was found, what was dropped, and on what terms."""
        if not self.artefacts.is_finished("data", "data"):
            details = prepare(self.config.data, self.folder / "data").manifest.details
            for line in (*details["report"], f"{details['source']}, licence: {details['licence']}"):
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if self.config.model.pathways is not None:
            resolve_features(self.config.model.pathways, self.data.schema)  # an unknown name ends the run here
        if self.config.data.sessions is not None:
            check_sessions(self.config.data.sessions, self.data.schema)
        check_targets(self.config.training.targets, self.data.schema)

    def fit_tokenizer(self) -> None:
        """Give every item its semantic ID."""
        if self.artefacts.is_finished("tokenizer", "tokenizer"):
            return
        training = self.data.histories.training()
        fit_tokenizer(
            self.data.items,
            Sequences(training.offsets, training.items),
            self.config.tokenizer,
            self.folder / "tokenizer",
            inputs={"data": self.data.manifest.content_hash},
            config_hash=hash_settings(self.config.tokenizer),
            text_columns=self.data.schema.text_columns,
        )

    def pretrain(self) -> None:
        """Train the model by next-token prediction; the weights best on validation are kept."""
        if self.artefacts.is_finished("pretrain", PRETRAIN_KIND):
            return
        require_hardware(self.config.decoding.precision, self.processes.device)
        pretrain(
            self.data.histories,
            self.table,
            self.config.model,
            self.config.training,
            self._validation_metrics,
            self.folder / "pretrain",
            self.folder / "checkpoints",
            inputs={"data": self.data.manifest.content_hash},
            config_hash=hash_settings([self.config.model, self.config.training]),
            seed=self.config.seed,
            fitted=self.fitted(),
            sessions=self.config.data.sessions,
        )

    def evaluate(self) -> None:
        """Evaluate the model and the baselines on validation and test, training those baselines that need it.

        Processes share the model's targets among them; of the baselines each trains and evaluates its own.
        """
        processes = self.processes
        self._evaluate_once("onerec", lambda: self.recommender(self.model), self._pretraining_minutes, processes)
        if self.config.data.sessions is not None and processes.is_main_process:
            self._evaluate_lists(self.config.data.sessions)
        if self.config.decoding.asks_others:
            beam_alone = partial(self._beam_alone, self.model)
            self._evaluate_once(BEAM_ALONE, beam_alone, self._pretraining_minutes, processes)
        for place, (name, fit) in enumerate(self._baselines().items()):
            if place % processes.num_processes == processes.process_index:
                self._evaluate_once(name, fit)
        processes.wait_for_everyone()

    def write_bundle(self) -> None:
        """Put together all that serving needs; a kept bundle is given the reward model that was trained since."""
        folder, reward = self.folder / "bundle", self.artefacts.reward
        if self.artefacts.is_finished("bundle", BUNDLE_KIND):
            self.complete_bundle(folder, reward)
            return
        pretrained = read_manifest(self.folder / "pretrain", PRETRAIN_KIND)
        inputs = {"data": self.data.manifest.content_hash, "pretrain": pretrained.content_hash}
        parts = (self.model, self.table, self.data, self.results(), self.config)
        write_bundle(folder, *parts, inputs, self.folder / "tokenizer", reward)

    def complete_bundle(self, folder: Path, reward: Path | None) -> None:
        """Give a finished bundle the reward model that it would have if it were written now.

        Raises:
            ArtifactError: it has another one.
        """
        if reward is not None and add_reward(folder, reward, self.table):
            self.console.print(f"{folder.name}: given the reward model that was trained since")

    def write_report(self) -> None:
        """Write metrics.json and the page, and print the results table."""
        results, folder = self.results(), self.folder / "report"
        write_results(folder / "metrics.json", results)
        write_report(folder / "report.html", self._report_contents(results))
        print_results(results, self.console)

    def _report_contents(self, results: Results) -> ReportContents:
        evaluations = self._load_run("onerec").evaluations
        protocol = next(protocol for protocol in PROTOCOLS if protocol in evaluations)
        titles = item_titles(self.data.items, self.data.schema.text_columns)
        return ReportContents(
            title=f"OneRec on {results.dataset}",
            results=results,
            training_log=json.loads((self.folder / "pretrain" / "log_history.json").read_text(encoding="utf-8")),
            tokenizer_report=json.loads((self.folder / "tokenizer" / "report.json").read_text(encoding="utf-8")),
            examples=choose_examples(self.recommender(self.model), self.data, evaluations[protocol], titles),
            config_yaml=dump_yaml(self.config),
            versions={**package_versions(), "code": code_revision(), "ID table": self.table.content_hash},
        )

    def results(self) -> Results:
        """Everything that was evaluated, OneRec first."""
        names = ["onerec", *self._compared()]
        runs: dict[str, Sequence[Run]] = {name: [self._load_run(name)] for name in names}
        return summarize_runs(runs, self.data.manifest.details["source"], self.config.evaluation)

    def results_beside(self, onerec: Run) -> Results:
        """Another model's evaluation in OneRec's place, beside those baselines that have been evaluated."""
        runs: dict[str, Sequence[Run]] = {"onerec": [onerec]}
        for name in self._compared():
            if self.artefacts.exists(f"evaluations/{name}"):
                runs[name] = [self._load_run(name)]
        return summarize_runs(runs, self.data.manifest.details["source"], self.config.evaluation)

    def _compared(self) -> list[str]:
        """What stands beside OneRec in a table: its beams before others order them, then the baselines."""
        return [*([BEAM_ALONE] if self.config.decoding.asks_others else []), *self._baselines()]

    def _beam_alone(self, model: OneRec) -> OneRecRecommender:
        recommender = self.recommender(model, beams_alone=True)
        recommender.name = BEAM_ALONE
        return recommender

    def _baselines(self) -> dict[str, Callable[[], Recommender]]:
        return baseline_fits(self.config, self.data, lambda: self.table)

    def _evaluate_once(
        self,
        name: str,
        fit: Callable[[], Recommender],
        minutes: Callable[[], float] | None = None,
        sharing: PartialState | None = None,
    ) -> None:
        if self.artefacts.exists(f"evaluations/{name}"):
            self._load_run(name)
            self.console.print(f"{name}: found its evaluation, kept")
            return
        start = time.monotonic()
        recommender = fit()
        elapsed_minutes = (time.monotonic() - start) / 60 if minutes is None else minutes()
        speaks = self.processes.is_main_process
        evaluations: dict[str, Evaluation] = {}
        for split in (Split.VALIDATION, Split.TEST):
            evaluations |= evaluate(recommender, self.data, split, self.config.evaluation, speaks, sharing)
        if sharing is None or sharing.is_main_process:
            exactness = self._exactness(recommender) if isinstance(recommender, OneRecRecommender) else {}
            size = getattr(recommender, "num_parameters", 0)
            run = Run(self.config.seed, evaluations, elapsed_minutes, size, exactness)
            inputs = self.artefacts.inputs(f"evaluations/{name}")
            save_run(self._evaluation_folder(name), run, inputs, hash_settings(self.config))

    def _exactness(self, recommender: OneRecRecommender) -> dict[str, float]:
        histories = self.data.histories
        return shares_equal_to_exact(recommender, histories, histories.targets(Split.TEST))

    def _evaluate_lists(self, sessions: SessionSettings) -> None:
        """Whole lists against the held-out sessions, beside lists of single items."""
        if self.artefacts.is_finished(LISTS, LISTS_KIND):
            return
        recommender = self.recommender(self.model)
        assert isinstance(recommender, ListRecommender)
        found: dict[str, dict[str, ListEvaluation]] = {}
        for split in (Split.VALIDATION, Split.TEST):
            found |= compare_lists(recommender, self.data, split, sessions, self.config.evaluation)
        save_lists(self.folder / LISTS, found, self.artefacts.inputs(LISTS), hash_settings(self.config))
        self.console.print(lists_table(found))

    def _validation_metrics(self, model: OneRec) -> dict[str, float]:
        settings = self.config.evaluation.model_copy(
            update={
                "protocols": ("seen_allowed",),
                "max_rows": self.config.training.validation_users or self.config.evaluation.max_rows,
                "bootstrap_samples": 1,
            }
        )
        evaluations = evaluate(self.recommender(model), self.data, Split.VALIDATION, settings, show_progress=False)
        return evaluations["validation"].metrics

    def recommender(self, model: OneRec, beams_alone: bool = False) -> OneRecRecommender:
        """A model of this run as it is evaluated, with the events that its pathways read.

        With `beams_alone` nothing else proposes items or has a say in their order.
        """
        pathways, source = model.encoder.pathways, None
        if pathways is not None:
            source = EventSource(self.data.histories, user_profiles(self.data.users, pathways.spec))
        return run_recommender(self.config, model, self.table, self.data.histories.training(), source, beams_alone)

    def fitted(self) -> Fitted:
        """What becomes part of the run's models: pieces and vectors of its tokenizer, features of their pathways."""
        tokenizer = self.folder / "tokenizer"
        return Fitted(load_pieces(tokenizer, self.table), self.fit_pathways(), load_item_vectors(tokenizer))

    def fit_pathways(self) -> FittedPathways | None:
        """Features of the model's pathways; None without any."""
        settings = self.config.model.pathways
        if settings is None:
            return None
        vectors_NV = load_item_vectors(self.folder / "tokenizer") if settings.lifelong else None
        return fit_pathways(settings, self.data, vectors_NV)

    def _pretraining_minutes(self) -> float:
        return float(read_manifest(self.folder / "pretrain", PRETRAIN_KIND).details["minutes"])

    def _load_run(self, name: str) -> Run:
        """A recommender's evaluation, checked to be of what the run holds now."""
        run = load_run(self._evaluation_folder(name))
        self.artefacts.require_inputs(f"evaluations/{name}", EVALUATION_KIND)
        return run

    def _evaluation_folder(self, name: str) -> Path:
        return self.folder / "evaluations" / name

    def _item_ids(self) -> list[str]:
        return [str(item) for item in self.data.items["item_id"].to_list()]
