"""metrics.json: what was measured, for every recommender and protocol, over one or several seeds.

    {
      "format_version": 1,
      "dataset": "amazon14_beauty",
      "seeds": [0, 1],
      "rows": {"test": {"evaluated": 22363, "available": 22363}, ...},     fewer where a sample was asked for
      "settings": {...},                                                   EvaluationSettings
      "test": {                                                            seen items allowed
        "onerec": {
          "recall@10": {"by_seed": {"0": .061, "1": .062}, "mean": .0615, "spread": .0007, "interval": [.058, .065]},
          "ndcg@10": {...}, "mrr@10": {...}, ...                           at every K of the settings
          "invalid_rate": 0.0, "unfilled_rate": 0.0,                       shares of places; means over the seeds
          "minutes": 61.0,                                                 of training, mean over the seeds
          "parameters": 2800000,
          "requests_per_s": 95.0,                                          while evaluating
          "unreachable_targets": 0, "empty_histories": 0,
          "exposure": {"coverage@10": .4, "gini@10": .8, "popularity@10": .9, "target_popularity": .6},
          "slices": {"cold": {"rows": 31, "recall@10": ..., ...}, "warm": ..., "hot": ..., "head": ..., "tail": ...}
        },
        "tiger": {...}, ...
      },
      "validation": {...}, "validation_unseen": {...},
      "test_unseen": {...},                                                the user's history excluded
      "comparisons": {"test": {"tiger": {"recall@10": {"difference": .002, "interval": [...], "p_value": .01}}}},
      "equals_exact": {"onerec": {"10": .4, "50": .97, "128": 1.0}}        beams -> share of a sample of test requests
                                                                           that get the exact search's ten items
    }

`spread` is the standard deviation over seeds, null for one seed. `interval` bounds the mean over seeds, its users
resampled. `comparisons` are paired, the first recommender minus each other one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from onerec.errors import ArtifactError, DataError
from onerec.evaluation import metrics
from onerec.evaluation.evaluator import Evaluation, Targets
from onerec.evaluation.settings import EvaluationSettings
from tokenizer.artifacts import write_json

PROTOCOLS = ("test", "test_unseen", "validation", "validation_unseen")


@dataclass(frozen=True)
class Run:
    """One recommender trained from one seed and evaluated."""

    seed: int
    evaluations: dict[str, Evaluation]
    minutes: float
    """Time of training."""
    parameters: int
    equals_exact: dict[str, float] = field(default_factory=dict)
    """Beams -> share of requests answered as the exact search answers them; empty where nobody asked."""


class MetricSummary(BaseModel):
    """One metric over the seeds."""

    by_seed: dict[str, float]
    mean: float
    spread: float | None
    interval: tuple[float, float]


class RecommenderSummary(BaseModel):
    """One recommender under one protocol; the metrics are further keys, such as `recall@10`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, MetricSummary]

    invalid_rate: float
    unfilled_rate: float
    minutes: float
    parameters: int
    requests_per_s: float
    unreachable_targets: int
    empty_histories: int
    exposure: dict[str, float]
    slices: dict[str, dict[str, float]]

    @property
    def metrics(self) -> dict[str, MetricSummary]:
        """The metrics by name."""
        return self.__pydantic_extra__


class Comparison(BaseModel):
    """Paired difference between the first recommender and another one."""

    difference: float
    interval: tuple[float, float]
    p_value: float


class Results(BaseModel):
    """The contents of metrics.json; see the head of this file."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    dataset: str
    seeds: list[int]
    rows: dict[str, dict[str, int]]
    settings: dict[str, Any]
    test: dict[str, RecommenderSummary] = {}
    test_unseen: dict[str, RecommenderSummary] = {}
    validation: dict[str, RecommenderSummary] = {}
    validation_unseen: dict[str, RecommenderSummary] = {}
    comparisons: dict[str, dict[str, dict[str, Comparison]]] = {}
    equals_exact: dict[str, dict[str, float]] = {}

    def under(self, protocol: str) -> dict[str, RecommenderSummary]:
        """Summaries by recommender under one of `PROTOCOLS`; empty where it was not evaluated."""
        summaries: dict[str, RecommenderSummary] = getattr(self, protocol)
        return summaries


def summarize_runs(runs: Mapping[str, Sequence[Run]], dataset: str, settings: EvaluationSettings) -> Results:
    """Bring the runs of every recommender together; the first one is compared with each of the others.

    Raises:
        DataError: no runs, or runs that were not evaluated on the same targets.
    """
    if not runs or not all(runs.values()):
        raise DataError("found no run to summarize, expected one or more for each recommender.")
    results = Results(
        dataset=dataset,
        seeds=sorted({run.seed for group in runs.values() for run in group}),
        rows={},
        settings=settings.model_dump(mode="json"),
    )
    for protocol in PROTOCOLS:
        groups = {name: [run for run in group if protocol in run.evaluations] for name, group in runs.items()}
        groups = {name: group for name, group in groups.items() if group}
        if groups:
            _add_protocol(results, protocol, groups, first=next(iter(runs)), settings=settings)
    shares = {name: _mean_of_dicts([run.equals_exact for run in group]) for name, group in runs.items()}
    results.equals_exact = {name: of_name for name, of_name in shares.items() if of_name}
    return results


def write_results(path: Path, results: Results) -> None:
    """Write metrics.json."""
    write_json(path, results.model_dump(mode="json"))


def read_results(path: Path) -> Results:
    """Read metrics.json back.

    Raises:
        ArtifactError: the file is missing or does not follow the schema.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}. Run the evaluation first.") from None
    except ValidationError as error:
        raise ArtifactError(f"{path} is no results file of this version: {error}. Run the evaluation again.") from None


def _add_protocol(
    results: Results, protocol: str, groups: dict[str, list[Run]], first: str, settings: EvaluationSettings
) -> None:
    evaluations = {name: [run.evaluations[protocol] for run in group] for name, group in groups.items()}
    targets = _shared_targets([each for group in evaluations.values() for each in group])
    # Averaged over the seeds row by row, so that resampling users keeps what the seeds have in common.
    values = {
        name: np.mean([metrics.metric_values(each.ranks_R, settings.ks) for each in group], axis=0)
        for name, group in evaluations.items()
    }
    results.rows[protocol] = {"evaluated": len(targets.rows_R), "available": targets.num_available}
    for name, group in groups.items():
        results.under(protocol)[name] = _summarize_group(group, evaluations[name], values[name], settings)
    if first in values:
        results.comparisons[protocol] = {
            name: _compare(values[first], other, targets.users_R, settings)
            for name, other in values.items()
            if name != first
        }


def _shared_targets(evaluations: Sequence[Evaluation]) -> Targets:
    targets = evaluations[0].targets
    for evaluation in evaluations:
        if not np.array_equal(evaluation.targets.rows_R, targets.rows_R):
            raise DataError(
                f"{evaluation.recommender} was evaluated on {len(evaluation.targets.rows_R)} targets of "
                f"{evaluation.protocol} that are not the {len(targets.rows_R)} of the runs before it. "
                "Evaluate all on the same split and sample."
            )
    return targets


def _summarize_group(
    runs: Sequence[Run], evaluations: Sequence[Evaluation], values_RM: np.ndarray, settings: EvaluationSettings
) -> RecommenderSummary:
    intervals = metrics.bootstrap_intervals(
        values_RM,
        evaluations[0].targets.users_R,
        settings.bootstrap_samples,
        settings.confidence,
        settings.bootstrap_seed,
    )
    summaries = {}
    for name, interval in zip(metrics.metric_names(settings.ks), intervals, strict=True):
        by_seed = {str(run.seed): evaluation.metrics[name] for run, evaluation in zip(runs, evaluations, strict=True)}
        summaries[name] = MetricSummary(
            by_seed=by_seed,
            mean=float(np.mean(list(by_seed.values()))),
            spread=float(np.std(list(by_seed.values()), ddof=1)) if len(by_seed) > 1 else None,
            interval=(interval.low, interval.high),
        )

    def average(value: Callable[[Evaluation], float]) -> float:
        return float(np.mean([value(evaluation) for evaluation in evaluations]))

    return RecommenderSummary(
        invalid_rate=average(lambda each: each.invalid_rate),
        unfilled_rate=average(lambda each: each.unfilled_rate),
        minutes=float(np.mean([run.minutes for run in runs])),
        parameters=runs[0].parameters,
        requests_per_s=average(lambda each: len(each.ranks_R) / max(each.seconds, 1e-9)),
        unreachable_targets=evaluations[0].unreachable_targets,
        empty_histories=evaluations[0].empty_histories,
        exposure=_mean_of_dicts([each.exposure for each in evaluations]),
        slices={name: _mean_of_dicts([each.slices[name] for each in evaluations]) for name in evaluations[0].slices},
        **summaries,
    )


def _mean_of_dicts(dicts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each key over the dicts that have it."""
    keys = dict.fromkeys(key for each in dicts for key in each)
    return {key: float(np.mean([each[key] for each in dicts if key in each])) for key in keys}


def _compare(
    values_RM: np.ndarray, other_values_RM: np.ndarray, users_R: np.ndarray, settings: EvaluationSettings
) -> dict[str, Comparison]:
    differences = metrics.compare_paired(
        values_RM,
        other_values_RM,
        users_R,
        settings.bootstrap_samples,
        settings.confidence,
        settings.bootstrap_seed,
    )
    return {
        name: Comparison(
            difference=each.difference, interval=(each.interval.low, each.interval.high), p_value=each.p_value
        )
        for name, each in zip(metrics.metric_names(settings.ks), differences, strict=True)
    }
