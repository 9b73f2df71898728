"""Evaluation of whole lists against the sessions that users had: what the list holds of them, and how early.

A request is made at the first held-out event of a session; its relevant items are those watched in the session from
there on. With m places, a session of n different items and r places that hold one of them:

    hit@m    = [r > 0]
    recall@m = r / min(m, n)
    NDCG@m   = sum over those places p of 1 / log2(1 + p), by the same sum over the first min(m, n) places

each averaged over sessions. Worked example: m = 3, a session of 2 items, of which the list holds one in place 2: hit 1,
recall 1/2, NDCG (1/log2(3)) / (1 + 1/log2(3)) = 0.3869.

Shapes: X sessions, m places of a list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich import box
from rich.table import Table

from onerec.data.histories import Split
from onerec.data.sessions import held_out_sessions
from onerec.data.settings import SessionSettings
from onerec.errors import DataError
from onerec.evaluation import metrics
from onerec.evaluation.evaluator import EvaluationData
from onerec.evaluation.metrics import Interval
from onerec.evaluation.recommender import Recommender, requests_before
from onerec.evaluation.settings import EvaluationSettings
from tokenizer.artifacts import atomic_folder, write_json, write_manifest

ARTIFACT_KIND = "lists"

Propose = Callable[[np.ndarray, bool], np.ndarray]
"""Rows of events, and whether seen items are left out -> a list (R, m) before each, -1 in places left empty."""


class ListProposer(Recommender, Protocol):
    """A recommender of whole lists and of single items."""

    @property
    def num_items_of_list(self) -> int:
        """Items m of a list."""

    def recommend_lists(self, histories: Sequence[Any], exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """The best list for each history (B, m), and its score (B,)."""


@dataclass(frozen=True)
class ListEvaluation:
    """Means over the sessions of a split, with intervals from resampled users."""

    protocol: str
    """`validation` or `test` with seen items allowed; `validation_unseen` or `test_unseen` with them excluded."""
    num_sessions: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        intervals = {name: [interval.low, interval.high] for name, interval in self.intervals.items()}
        return {"sessions": self.num_sessions, "metrics": self.metrics, "intervals": intervals}


def evaluate_lists(
    propose: Propose, data: EvaluationData, split: Split, sessions: SessionSettings, settings: EvaluationSettings
) -> dict[str, ListEvaluation]:
    """Propose a list before every session of `split`, or a seeded sample of them, under each protocol.

    Raises:
        DataError: the split holds nothing that counts as watched, or a list holds an item twice.
    """
    histories = data.histories
    held_out = held_out_sessions(histories, split, sessions)
    chosen = np.arange(len(held_out.rows_X))
    if settings.max_rows is not None and settings.max_rows < len(chosen):
        sample = np.random.default_rng(settings.sample_seed).choice(chosen, size=settings.max_rows, replace=False)
        chosen = np.sort(sample)
    rows_X, relevant = held_out.rows_X[chosen], [held_out.items[session] for session in chosen]
    users_X = histories.users_of(rows_X)
    evaluations = {}
    for protocol in settings.protocols:
        exclude_seen = protocol == "seen_excluded"
        name = split.name.lower() + ("_unseen" if exclude_seen else "")
        lists_Xm = _propose_all(propose, rows_X, exclude_seen, settings.batch_size)
        evaluations[name] = _summarize(name, list_values(lists_Xm, relevant), users_X, lists_Xm.shape[1], settings)
    return evaluations


def compare_lists(
    recommender: ListProposer,
    data: EvaluationData,
    split: Split,
    sessions: SessionSettings,
    settings: EvaluationSettings,
) -> dict[str, dict[str, ListEvaluation]]:
    """Lists that were generated whole beside lists of the best single items of the same model, under each protocol.

    Raises:
        DataError: as `evaluate_lists`.
    """

    def whole(rows: np.ndarray, exclude_seen: bool) -> np.ndarray:
        return recommender.recommend_lists(requests_before(recommender, data.histories, rows), exclude_seen)[0]

    def single(rows: np.ndarray, exclude_seen: bool) -> np.ndarray:
        requests = requests_before(recommender, data.histories, rows)
        return recommender.recommend(requests, recommender.num_items_of_list, exclude_seen).items_BK

    kinds = {"whole lists": whole, "single items": single}
    found = {kind: evaluate_lists(propose, data, split, sessions, settings) for kind, propose in kinds.items()}
    return {protocol: {kind: found[kind][protocol] for kind in kinds} for protocol in found["whole lists"]}


def save_lists(
    folder: Path, protocols: dict[str, dict[str, ListEvaluation]], inputs: dict[str, str], config_hash: str
) -> None:
    """Write metrics.json: the figures of each protocol and kind of list.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    figures = {
        protocol: {kind: evaluation.to_dict() for kind, evaluation in kinds.items()}
        for protocol, kinds in protocols.items()
    }
    with atomic_folder(folder) as temporary:
        write_json(temporary / "metrics.json", figures)
        write_manifest(temporary, ARTIFACT_KIND, inputs, config_hash)


def lists_table(protocols: dict[str, dict[str, ListEvaluation]]) -> Table:
    """A line for each protocol and kind of list."""
    table = Table(title="Lists against sessions", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("protocol")
    table.add_column("list of")
    first = next(iter(next(iter(protocols.values())).values()))
    for name in first.metrics:
        table.add_column(f"{name} (interval)", justify="right", no_wrap=True)
    for protocol, kinds in protocols.items():
        for kind, evaluation in kinds.items():
            bounds = evaluation.intervals.values()
            cells = [
                f"{value:.4f} ({interval.low:.4f}-{interval.high:.4f})"
                for value, interval in zip(evaluation.metrics.values(), bounds, strict=True)
            ]
            table.add_row(protocol, kind, *cells)
    return table


def list_values(lists_Xm: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Hit, recall and NDCG (X, 3) of each list, by the items of its session, one at least.

    Raises:
        DataError: a list holds an item twice.
    """
    num_places = lists_Xm.shape[1]
    _check_distinct(lists_Xm)
    found_Xm = np.array([np.isin(items_m, items) for items_m, items in zip(lists_Xm, relevant, strict=True)])
    gains_m = 1 / np.log2(2.0 + np.arange(num_places))
    num_best_X = np.minimum([len(items) for items in relevant], num_places)
    ideal_X = np.cumsum(gains_m)[num_best_X - 1]
    num_found_X = found_Xm.sum(axis=1)
    return np.stack([num_found_X > 0, num_found_X / num_best_X, found_Xm @ gains_m / ideal_X], axis=1)


def _propose_all(propose: Propose, rows_X: np.ndarray, exclude_seen: bool, batch_size: int) -> np.ndarray:
    batches = [rows_X[first : first + batch_size] for first in range(0, len(rows_X), batch_size)]
    return np.concatenate([propose(rows, exclude_seen) for rows in batches])


def _summarize(
    name: str, values_XM: np.ndarray, users_X: np.ndarray, num_places: int, settings: EvaluationSettings
) -> ListEvaluation:
    intervals = metrics.bootstrap_intervals(
        values_XM, users_X, settings.bootstrap_samples, settings.confidence, settings.bootstrap_seed
    )
    names = [f"{metric}@{num_places}" for metric in ("hit", "recall", "ndcg")]
    means = dict(zip(names, values_XM.mean(axis=0).tolist(), strict=True))
    return ListEvaluation(name, len(values_XM), means, dict(zip(names, intervals, strict=True)))


def _check_distinct(lists_Xm: np.ndarray) -> None:
    ordered_Xm = np.sort(lists_Xm, axis=1)
    repeats_X = ((ordered_Xm[:, 1:] == ordered_Xm[:, :-1]) & (ordered_Xm[:, 1:] >= 0)).any(axis=1)
    if repeats_X.any():
        row = int(repeats_X.argmax())
        raise DataError(
            f"{int(repeats_X.sum())} lists hold an item twice; first: {lists_Xm[row].tolist()}. "
            "Expected each item once."
        )
