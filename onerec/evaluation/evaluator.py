"""The evaluator: full ranking of the catalogue for every held-out target, seen items allowed and excluded.

A target's history is everything its user did before it, held-out events included: the history of a test target holds
the validation item. No target is padded, repeated or left out; the last batch is as long as what remains.

Shapes: R rows (one target each), B rows of a batch, K places of a list, N items.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from onerec.data.histories import Histories, Split
from onerec.errors import DataError
from onerec.evaluation import metrics
from onerec.evaluation.metrics import Interval
from onerec.evaluation.recommender import NO_ITEM, Ranking, Recommender, requests_before
from onerec.evaluation.settings import EvaluationSettings


class EvaluationData(Protocol):
    """What the evaluator needs of the prepared data."""

    @property
    def histories(self) -> Histories:
        """Every user's events with their split labels."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""


@dataclass(frozen=True)
class Targets:
    """The held-out events that are evaluated."""

    rows_R: np.ndarray
    """int64 row numbers in the histories' arrays, ascending."""
    users_R: np.ndarray
    items_R: np.ndarray
    train_counts_R: np.ndarray
    """Training events of each target's item."""
    num_available: int
    """Targets of the split, of which these may be a sample."""


@dataclass(frozen=True)
class Evaluation:
    """One recommender under one protocol: per-row ranks and everything averaged from them."""

    recommender: str
    protocol: str
    """`validation` or `test` with seen items allowed; `validation_unseen` or `test_unseen` with them excluded."""
    targets: Targets
    ranks_R: np.ndarray
    """Place of each target in its list, from 1; 0 outside the list."""
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    slices: dict[str, dict[str, float]]
    """cold, warm, hot, head, tail: number of rows and the metrics over them."""
    exposure: dict[str, float]
    """Coverage, Gini, and mean popularity percentile of what is recommended and of the targets."""
    invalid_rate: float
    """Share of the filled places that hold no item, a repeated one, or one that is excluded."""
    unfilled_rate: float
    """Share of places left empty."""
    unreachable_targets: int
    """Targets in their own history, which excluding seen items makes impossible to hit."""
    empty_histories: int
    """Targets with nothing before them."""
    seconds: float
    """Time spent inside the recommender, by all processes together."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-row arrays, ready for JSON."""
        return {
            "recommender": self.recommender,
            "protocol": self.protocol,
            "rows": len(self.ranks_R),
            "rows_available": self.targets.num_available,
            "metrics": self.metrics,
            "intervals": {name: [interval.low, interval.high] for name, interval in self.intervals.items()},
            "slices": self.slices,
            "exposure": self.exposure,
            "invalid_rate": self.invalid_rate,
            "unfilled_rate": self.unfilled_rate,
            "unreachable_targets": self.unreachable_targets,
            "empty_histories": self.empty_histories,
            "seconds": self.seconds,
        }


def evaluate(
    recommender: Recommender,
    data: EvaluationData,
    split: Split,
    settings: EvaluationSettings,
    show_progress: bool = True,
    sharing: PartialState | None = None,
) -> dict[str, Evaluation]:
    """Rank the whole catalogue for every target of `split`, under each protocol of the settings.

    Args:
        sharing: processes that call this together; each takes every so-manieth batch, and all get the whole.

    Returns:
        Evaluations by protocol: `test` and `test_unseen`, or `validation` and `validation_unseen`.

    Raises:
        DataError: the split holds no target, histories are out of order, or the recommender returns lists of a wrong
            shape or order.
    """
    check_order(data.histories)
    counts_N = data.histories.training().item_counts(data.num_items)
    targets = select_targets(data.histories, split, counts_N, settings)
    evaluations = {}
    for protocol in settings.protocols:
        exclude_seen = protocol == "seen_excluded"
        name = split.name.lower() + ("_unseen" if exclude_seen else "")
        tally = _Tally(counts_N, settings, exclude_seen)
        batches = _batches(len(targets.rows_R), settings.batch_size, sharing)
        _rank_targets(recommender, data.histories, targets, settings, tally, batches, name if show_progress else None)
        if sharing is not None and sharing.num_processes > 1:
            tally = _joined(gather_object([tally]))
        evaluations[name] = _summarize(recommender.name, name, targets, tally, settings)
    return evaluations


def compare(
    evaluation: Evaluation, other: Evaluation, settings: EvaluationSettings
) -> dict[str, metrics.PairedDifference]:
    """Paired difference of every metric between two recommenders on the same targets.

    Raises:
        DataError: they were not evaluated on the same targets.
    """
    if not np.array_equal(evaluation.targets.rows_R, other.targets.rows_R):
        raise DataError(
            f"{evaluation.recommender} and {other.recommender} were evaluated on different targets, expected the same. "
            "Evaluate both on the same split and sample."
        )
    differences = metrics.compare_paired(
        metrics.metric_values(evaluation.ranks_R, settings.ks),
        metrics.metric_values(other.ranks_R, settings.ks),
        evaluation.targets.users_R,
        settings.bootstrap_samples,
        settings.confidence,
        settings.bootstrap_seed,
    )
    return dict(zip(metrics.metric_names(settings.ks), differences, strict=True))


def select_targets(histories: Histories, split: Split, counts_N: np.ndarray, settings: EvaluationSettings) -> Targets:
    """The targets of `split`, or the seeded sample of them that the settings ask for, in the order of rows.

    Raises:
        DataError: the split holds no target.
    """
    rows = histories.targets(split)
    if not len(rows):
        raise DataError(
            f"the {split.name.lower()} split holds no event, expected targets to evaluate. Check the split."
        )
    num_available = len(rows)
    if settings.max_rows is not None and settings.max_rows < num_available:
        rng = np.random.default_rng(settings.sample_seed)
        rows = np.sort(rng.choice(rows, size=settings.max_rows, replace=False))
    items = np.asarray(histories.items[rows])
    return Targets(rows, histories.users_of(rows), items, counts_N[items], num_available)


def check_order(histories: Histories) -> None:
    """Check that each user's events are oldest first and that no event precedes one of an earlier split.

    Raises:
        DataError: naming the first user and row out of order.
    """
    for name, values in (("timestamps", histories.timestamps), ("splits", histories.splits)):
        descends = np.asarray(values[1:]) < np.asarray(values[:-1])
        first_rows = np.asarray(histories.offsets[1:-1])
        descends[first_rows[(first_rows > 0) & (first_rows < histories.num_events)] - 1] = False
        if descends.any():
            row = int(descends.argmax()) + 1
            user = int(histories.users_of(np.array([row]))[0])
            raise DataError(
                f"user {user}: {name} descend at row {row} ({values[row - 1]} then {values[row]}), expected the oldest "
                "event first and train before validation before test. Prepare the data again."
            )


class _Tally:
    """What is added up batch by batch, so that no list need be kept."""

    def __init__(self, counts_N: np.ndarray, settings: EvaluationSettings, exclude_seen: bool) -> None:
        self.counts_N = counts_N
        self.exclude_seen = exclude_seen
        self.exposure_k = settings.exposure_k
        self.exposures_N = np.zeros(len(counts_N), dtype=np.int64)
        self.ranks: dict[int, np.ndarray] = {}  # by first row of the batch
        self.places = self.filled = self.invalid = 0
        self.unreachable_targets = self.empty_histories = 0
        self.seconds = 0.0

    def all_ranks(self) -> np.ndarray:
        """Place of each row's target, in the order of rows. (R,)."""
        return np.concatenate([self.ranks[start] for start in sorted(self.ranks)])

    def add(self, start: int, ranking: Ranking, histories: Sequence[np.ndarray], targets_B: np.ndarray) -> None:
        items_BK, num_items = ranking.items_BK, len(self.counts_N)
        self.ranks[start] = metrics.ranks_of_targets(items_BK, targets_B)
        filled, invalid = metrics.count_invalid(items_BK, num_items, histories, self.exclude_seen)
        self.places += items_BK.size
        self.filled += filled
        self.invalid += invalid
        exposed = items_BK[:, : self.exposure_k]
        in_catalogue = (exposed >= 0) & (exposed < num_items)
        self.exposures_N += np.bincount(exposed[in_catalogue], minlength=num_items)
        self.empty_histories += sum(not len(history) for history in histories)
        if self.exclude_seen:
            pairs = zip(histories, targets_B, strict=True)
            self.unreachable_targets += sum(bool(np.any(history == target)) for history, target in pairs)

    def exposure(self, targets_R: np.ndarray) -> dict[str, float]:
        k = self.exposure_k
        percentiles_N = metrics.popularity_percentiles(self.counts_N)
        exposure = {
            f"coverage@{k}": metrics.coverage(self.exposures_N),
            f"gini@{k}": metrics.gini(self.exposures_N),
            "target_popularity": float(percentiles_N[targets_R].mean()),
        }
        num_exposed = self.exposures_N.sum()
        if num_exposed:
            exposure[f"popularity@{k}"] = float(self.exposures_N @ percentiles_N / num_exposed)
        return exposure


def _joined(tallies: Sequence[_Tally]) -> _Tally:
    """The first of the tallies with what the others hold."""
    whole, *others = tallies
    for other in others:
        whole.ranks |= other.ranks
        whole.exposures_N += other.exposures_N
        for name in ("places", "filled", "invalid", "unreachable_targets", "empty_histories", "seconds"):
            setattr(whole, name, getattr(whole, name) + getattr(other, name))
    return whole


def _batches(num_rows: int, batch_size: int, sharing: PartialState | None) -> list[slice]:
    """This process's batches: the same as those of one process, dealt out in turn."""
    batches = [slice(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]
    return batches if sharing is None else batches[sharing.process_index :: sharing.num_processes]


def _rank_targets(
    recommender: Recommender,
    histories: Histories,
    targets: Targets,
    settings: EvaluationSettings,
    tally: _Tally,
    batches: Sequence[slice],
    progress_name: str | None,
) -> None:
    progress = tqdm(
        total=sum(batch.stop - batch.start for batch in batches),
        desc=f"evaluate {recommender.name} on {progress_name}",
        unit="user",
        disable=progress_name is None,
    )
    with progress:
        for batch in batches:
            befores = [histories.before(int(row)) for row in targets.rows_R[batch]]
            requests = requests_before(recommender, histories, targets.rows_R[batch])
            started = time.perf_counter()
            ranking = recommender.recommend(requests, settings.list_length, tally.exclude_seen)
            tally.seconds += time.perf_counter() - started
            _check_ranking(ranking, len(befores), settings.list_length, recommender.name)
            tally.add(batch.start, ranking, befores, targets.items_R[batch])
            progress.update(len(befores))


def _check_ranking(ranking: Ranking, num_rows: int, k: int, name: str) -> None:
    expected = (num_rows, k)
    if ranking.items_BK.shape != expected or ranking.scores_BK.shape != expected:
        raise DataError(
            f"{name} returned items {ranking.items_BK.shape} and scores {ranking.scores_BK.shape}, "
            f"expected {expected}: a list of {k} for every history, filled up with {NO_ITEM}."
        )
    filled_BK = ranking.items_BK != NO_ITEM
    if (filled_BK[:, 1:] & ~filled_BK[:, :-1]).any():
        raise DataError(f"{name} returned a list with a gap, expected empty places only at the end.")
    better_BK = ranking.scores_BK[:, 1:] > ranking.scores_BK[:, :-1]
    if (better_BK & filled_BK[:, 1:]).any():
        raise DataError(f"{name} returned scores that rise along a list, expected the best item first.")


def _summarize(name: str, protocol: str, targets: Targets, tally: _Tally, settings: EvaluationSettings) -> Evaluation:
    ranks_R = tally.all_ranks()
    values_RM = metrics.metric_values(ranks_R, settings.ks)
    intervals = metrics.bootstrap_intervals(
        values_RM, targets.users_R, settings.bootstrap_samples, settings.confidence, settings.bootstrap_seed
    )
    masks = metrics.popularity_slices(
        targets.train_counts_R, tally.counts_N, settings.hot_min_count, settings.head_share
    )
    return Evaluation(
        recommender=name,
        protocol=protocol,
        targets=targets,
        ranks_R=ranks_R,
        metrics=metrics.mean_metrics(ranks_R, settings.ks),
        intervals=dict(zip(metrics.metric_names(settings.ks), intervals, strict=True)),
        slices={
            slice_name: {"rows": int(mask.sum()), **metrics.mean_metrics(ranks_R[mask], settings.ks)}
            for slice_name, mask in masks.items()
        },
        exposure=tally.exposure(targets.items_R),
        invalid_rate=tally.invalid / tally.filled if tally.filled else 0.0,
        unfilled_rate=1.0 - tally.filled / tally.places,
        unreachable_targets=tally.unreachable_targets,
        empty_histories=tally.empty_histories,
        seconds=tally.seconds,
    )
