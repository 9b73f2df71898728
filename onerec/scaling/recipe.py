"""A run's recipe in other widths, and on parts of its data: metrics on validation by the evaluator, plotted.

runs/<name>/scaling/recipe/  <rung>/tokenizer   of a part of the data, which all that is fitted sees alone
                             <rung>/pretrain    weights best on validation; checkpoints/ while it trains
                             <rung>/validation  what the evaluator found; kept, so that rungs can be added
                             recipe.json report.html

A part of the data is the training events of some users, drawn by the run's seed, the smaller part within the larger.
What is held out stays as it is: every rung is asked the same questions after the same, whole histories. The run's own
rung is its own pre-training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from onerec.data.histories import Histories, Split
from onerec.evaluation.charts import Series, line_chart
from onerec.evaluation.evaluator import Evaluation, evaluate
from onerec.evaluation.page import Section, write_page
from onerec.evaluation.results import Run
from onerec.evaluation.runs import kept_run
from onerec.evaluation.settings import EvaluationSettings
from onerec.model.onerec import OneRec
from onerec.model.presets import count_parameters
from onerec.model.settings import ModelSettings
from onerec.pipeline import Pipeline
from onerec.run_recommender import run_recommender
from onerec.scaling.figures import print_rows
from onerec.scaling.settings import RecipeSettings
from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from onerec.training.pretraining import Fitted, load_pretrained, pretrain
from onerec.training.settings import TrainingSettings
from tokenizer.artifacts import MANIFEST_NAME, hash_settings, hash_text, read_manifest, require_same_hash, write_json
from tokenizer.fit import fit_tokenizer, load_item_vectors, load_pieces
from tokenizer.sequences import Sequences
from tokenizer.table import SemanticIdTable

OWN = "recipe"


class RecipePoint(BaseModel):
    """What one rung showed."""

    name: str
    share: float
    """Of the users that it was fitted to."""
    events: int
    """Training events of these."""
    parameters: int
    """All trainable numbers."""
    without_tables: int
    """Those that the ladder counts: without the vectors of items and codes that the context looks up."""
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    minutes: float


def scale_recipe(pipeline: Pipeline, settings: RecipeSettings) -> None:
    """Train and evaluate the rungs that are not finished, and write the figures; the run has data and tokenizer.

    Raises:
        ArtifactError: a finished rung of other settings or data.
        DataError: a part of the data without a training event, or no validation event.
    """
    own = Rung(pipeline)
    divides = settings.divide_learning_rate
    by_width = [own, *(Rung(pipeline, times, divides) for times in sorted(settings.widths))]
    by_share = [*(Rung(pipeline, share=share) for share in sorted(settings.shares)), own]
    for rung in {rung.name: rung for rung in (*by_width, *by_share)}.values():
        rung.finish()
    if pipeline.processes.is_main_process:
        publish(pipeline, [rung.point() for rung in by_width], [rung.point() for rung in by_share])


def part_of_users(histories: Histories, share: float, seed: int) -> Histories:
    """The training events of a seeded part of the users, one at least; the others have none."""
    training = histories.training()
    num_users = training.num_users
    is_in_U = np.zeros(num_users, dtype=bool)
    is_in_U[np.random.default_rng(seed).permutation(num_users)[: max(round(share * num_users), 1)]] = True
    lengths_U = np.diff(training.offsets)
    kept = np.repeat(is_in_U, lengths_U)
    return Histories(
        offsets=np.concatenate(([0], np.cumsum(lengths_U * is_in_U))),
        items=training.items[kept],
        timestamps=training.timestamps[kept],
        splits=training.splits[kept],
        feedback={name: values[kept] for name, values in training.feedback.items()},
    )


def widen(model: ModelSettings, times: int) -> ModelSettings:
    """The model in a multiple of its width, with as many more heads of the same width."""
    widths = ("d_model", "d_ff", "num_heads", "embedding_dim", "num_kv_heads", "expert_d_ff")
    wider = {name: times * value for name in widths if (value := getattr(model, name)) is not None}
    return ModelSettings.model_validate(model.model_dump() | wider)


@dataclass(frozen=True)
class Rung:
    """The recipe in one width on one part of the data; by default its own width on all of it."""

    pipeline: Pipeline
    times: int = 1
    """Of the run's width."""
    divides_rate: bool = False
    """The learning rate too."""
    share: float = 1.0
    """Of the users."""

    def finish(self) -> None:
        """Train and evaluate what is not finished, all processes together.

        Raises:
            ArtifactError, DataError: as `scale_recipe`.
        """
        if not (self.folder / "validation" / MANIFEST_NAME).is_file():
            self.pipeline.console.rule(f"[bold]{self.name}")
            self._train()
        self.pipeline.run_for_everyone(self._evaluated)

    def point(self) -> RecipePoint:
        """What it showed, after `finish`."""
        run = self._evaluated()
        evaluation = run.evaluations["validation"]
        pieces = load_pieces(self._tokenizer, self.table)
        num_pieces = 0 if pieces is None else pieces.vocabulary_size
        shape = self._model_settings.configuration(self.table.codes_per_level, self.table.num_items, num_pieces)
        return RecipePoint(
            name=self.name,
            share=self.share,
            events=self.histories.num_events,
            parameters=run.parameters,
            without_tables=count_parameters(shape).total,
            metrics=evaluation.metrics,
            intervals={name: (each.low, each.high) for name, each in evaluation.intervals.items()},
            minutes=run.minutes,
        )

    @property
    def name(self) -> str:
        """What to call it: `recipe`, `width-x2`, `share-0.1`."""
        if self.times > 1:
            return f"width-x{self.times}"
        return OWN if self._is_own else f"share-{self.share:g}"

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.pipeline.folder / "scaling" / "recipe" / self.name

    @cached_property
    def histories(self) -> Histories:
        """The training events that it is fitted to."""
        histories = self.pipeline.data.histories
        if self.share == 1:
            return histories.training()
        return part_of_users(histories, self.share, self.pipeline.config.seed)

    @cached_property
    def table(self) -> SemanticIdTable:
        """Its semantic IDs: the run's, or those of its part of the data."""
        if self.share == 1:
            return self.pipeline.table
        return SemanticIdTable.load(self._tokenizer, item_ids=self.pipeline.table.item_ids)

    @property
    def _is_own(self) -> bool:
        return self.times == 1 and self.share == 1

    @property
    def _tokenizer(self) -> Path:
        return (self.pipeline.folder if self.share == 1 else self.folder) / "tokenizer"

    @property
    def _pretrained(self) -> Path:
        return (self.pipeline.folder if self._is_own else self.folder) / "pretrain"

    @property
    def _model_settings(self) -> ModelSettings:
        return widen(self.pipeline.config.model, self.times)

    @property
    def _training_settings(self) -> TrainingSettings:
        training = self.pipeline.config.training
        divisor = self.times if self.divides_rate else 1
        return training.model_copy(update={"learning_rate": training.learning_rate / divisor})

    def _train(self) -> None:
        if self._is_own:
            self.pipeline.pretrain()
            return
        self.pipeline.run_for_everyone(self._fit_tokenizer)
        config_hash = hash_settings([self._model_settings, self._training_settings])
        if (self._pretrained / MANIFEST_NAME).is_file():
            found = read_manifest(self._pretrained, PRETRAIN_KIND).config_hash
            require_same_hash(f"{self._pretrained}: trained by other settings", found, config_hash, "Delete it.")
            return
        pretrain(
            self.histories,
            self.table,
            self._model_settings,
            self._training_settings,
            self._validation_metrics,
            self._pretrained,
            self.folder / f"checkpoints-{config_hash[:12]}",
            self._inputs(),
            config_hash,
            self.pipeline.config.seed,
            Fitted(load_pieces(self._tokenizer, self.table), None, load_item_vectors(self._tokenizer)),
        )

    def _fit_tokenizer(self) -> None:
        """Semantic IDs by what this part of the data tells, where it is a part."""
        if self.share == 1 or (self._tokenizer / MANIFEST_NAME).is_file():
            return
        data, settings = self.pipeline.data, self.pipeline.config.tokenizer
        sequences = Sequences(self.histories.offsets, self.histories.items)
        columns = data.schema.text_columns
        fit_tokenizer(
            data.items, sequences, settings, self._tokenizer, self._inputs(), hash_settings(settings), columns
        )

    def _validation_metrics(self, model: OneRec) -> dict[str, float]:
        config = self.pipeline.config
        sample = config.training.validation_users or config.evaluation.max_rows
        settings = config.evaluation.model_copy(update={"max_rows": sample, "bootstrap_samples": 1})
        return self._evaluate(model, settings).metrics

    def _evaluate(self, model: OneRec, settings: EvaluationSettings) -> Evaluation:
        recommender = run_recommender(self.pipeline.config, model, self.table, self.histories)
        allowed = settings.model_copy(update={"protocols": ("seen_allowed",)})
        return evaluate(recommender, self.pipeline.data, Split.VALIDATION, allowed, show_progress=False)["validation"]

    def _evaluated(self) -> Run:
        """What the evaluator found, now or before."""

        def make() -> Run:
            model = load_pretrained(self._pretrained, self.table).to(self.pipeline.processes.device)
            evaluation = self._evaluate(model, self.pipeline.config.evaluation)
            minutes = float(read_manifest(self._pretrained, PRETRAIN_KIND, verify_files=False).details["minutes"])
            return Run(self.pipeline.config.seed, {"validation": evaluation}, minutes, model.num_parameters())

        return kept_run(self.folder / "validation", self._inputs(), self._hash(), make)

    def _inputs(self) -> dict[str, str]:
        return {"data": self.pipeline.data.manifest.content_hash}

    def _hash(self) -> str:
        """Hash of all that it depends on but for the data."""
        config = self.pipeline.config
        groups = [config.tokenizer, self._model_settings, self._training_settings, config.decoding, config.evaluation]
        return hash_text(f"{hash_settings(groups)} {config.seed} {self.share!r}")


def publish(pipeline: Pipeline, by_width: Sequence[RecipePoint], by_share: Sequence[RecipePoint]) -> None:
    """Print the points, and write them and their plots."""
    folder = pipeline.folder / "scaling" / "recipe"
    axes = {"widths": by_width, "shares": by_share}
    write_json(
        folder / "recipe.json", {axis: [point.model_dump() for point in points] for axis, points in axes.items()}
    )
    k = 10 if 10 in pipeline.config.evaluation.ks else pipeline.config.evaluation.ks[-1]
    recall, ndcg = f"recall@{k}", f"ndcg@{k}"
    points = list({point.name: point for point in (*by_share, *by_width)}.values())
    rows = _rows(points, next(point for point in points if point.name == OWN), recall, ndcg)
    print_rows("The recipe in other widths and on parts of the data (validation)", rows, pipeline.console)
    charts = [
        _chart(by_width, "without_tables", "parameters without tables", recall, ndcg),
        _chart(by_share, "events", "training events", recall, ndcg),
    ]
    note = "Validation, seen items allowed. Intervals resample users."
    write_page(
        folder / "report.html",
        "Scaling of the recipe",
        f"{pipeline.data.manifest.details['source']}: {len(points)} runs of {pipeline.config.name}.",
        [Section("Width and data", note, charts, rows[0], rows[1:])],
    )


def _rows(points: Sequence[RecipePoint], own: RecipePoint, recall: str, ndcg: str) -> list[list[str]]:
    """Headings, then a row a point."""
    rows = [["rung", "share", "events", "parameters", "N", "x N", recall, "interval", ndcg, "interval", "min"]]
    for point in points:
        row = [point.name, f"{point.share:.0%}", f"{point.events:,}", f"{point.parameters:,}"]
        row += [f"{point.without_tables:,}", f"{point.without_tables / own.without_tables:.1f}"]
        for metric in (recall, ndcg):
            row += [f"{point.metrics[metric]:.4f}", "{:.4f}-{:.4f}".format(*point.intervals[metric])]
        rows.append([*row, f"{point.minutes:.1f}"])
    return rows


def _chart(points: Sequence[RecipePoint], field: str, label: str, *metrics: str) -> str:
    series = [Series(name, [(getattr(point, field), point.metrics[name]) for point in points]) for name in metrics]
    return line_chart(series, label, f"Validation by {label}", logarithmic_x=True)
