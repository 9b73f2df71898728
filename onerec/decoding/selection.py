"""Selection among the beams by a reward model, from which the report of OneRec has its online gain (arXiv 2506.13695).

Shapes: B requests, K places of a list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onerec.data.pathways import History, UserEvents, events_of
from onerec.evaluation.recommender import NO_ITEM, Ranking
from onerec.model.preference.artefact import KIND, load_reward_model
from onerec.model.preference.contexts import contexts_of
from onerec.model.preference.judge import PreferenceJudge
from onerec.model.preference.settings import SelectionSettings
from tokenizer.artifacts import read_manifest
from tokenizer.table import SemanticIdTable


@dataclass(frozen=True)
class Selector:
    """A reward model that puts generated items in order; `share` is its weight beside the generator, see `rerank`."""

    judge: PreferenceJudge
    share: float = 1.0

    @classmethod
    def load(cls, folder: Path, table: SemanticIdTable) -> "Selector":
        """A stored reward model, with the weights that its stage was told to select by.

        Raises:
            ArtifactError: the folder is no finished reward model, or its items are others.
        """
        stored = read_manifest(folder, KIND).details.get("selection", {})
        settings = SelectionSettings.model_validate(stored)
        judge = PreferenceJudge(load_reward_model(folder, table), settings.weights, f"{folder}: selection.weights")
        return cls(judge, settings.share)

    def weighing(self, weights: Mapping[str, float], key: str) -> "Selector":
        """The same by other weights, tower or `pscore` -> weight of its expected value; `key` is how errors call them.

        Raises:
            ConfigError: a weight of no tower.
        """
        return replace(self, judge=PreferenceJudge(self.judge.model, weights, key))

    def select(self, histories: Sequence[History], ranking: Ranking) -> Ranking:
        """The items of each request in the order of the mixture.

        Of items that have joined the catalogue since the reward model was trained nothing is known: such events of a
        history are not read, and such an item counts as the mean of the others.
        """
        model = self.judge.model
        requests = [_events_below(events_of(history), model.config.num_items) for history in histories]
        contexts = contexts_of(requests, model.signals, model.max_history_items, model.device)
        known_BK = (ranking.items_BK != NO_ITEM) & (ranking.items_BK < model.config.num_items)
        rewards_BK = self.judge(contexts, np.where(known_BK, ranking.items_BK, NO_ITEM))
        means_B1 = rewards_BK.sum(axis=1, keepdims=True) / np.maximum(known_BK.sum(axis=1, keepdims=True), 1)
        return rerank(ranking, np.where(known_BK, rewards_BK, means_B1), self.share)


def rerank(ranking: Ranking, rewards_BK: np.ndarray, share: float = 1.0) -> Ranking:
    """The same items in another order: by reward, or by a mixture of reward and generator.

    Both are standardised within each list, so that the mixture has no unit. Items that come out even keep their order.

    Args:
        share: weight of the reward; 1 is by the reward alone, 0 leaves the order as it is.
    """
    filled_BK = ranking.items_BK != NO_ITEM
    mixed_BK = (1 - share) * _standardise(ranking.scores_BK, filled_BK) + share * _standardise(rewards_BK, filled_BK)
    scores_BK = np.where(filled_BK, mixed_BK, -np.inf)
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")
    return Ranking(
        items_BK=np.take_along_axis(ranking.items_BK, order_BK, axis=1),
        scores_BK=np.take_along_axis(scores_BK, order_BK, axis=1).astype(np.float32),
    )


def _events_below(events: UserEvents, num_items: int) -> UserEvents:
    items = np.asarray(events.items)
    if (items < num_items).all():
        return events
    known = items < num_items
    feedback = {name: np.asarray(values)[known] for name, values in events.feedback.items()}
    return UserEvents(items[known], feedback=feedback)


def _standardise(values_BK: np.ndarray, filled_BK: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over the filled places of each row; 0 where all are equal but for rounding."""
    known_BK = np.where(filled_BK, values_BK, 0.0).astype(np.float64)
    counts_B1 = np.maximum(filled_BK.sum(axis=1, keepdims=True), 1)
    centred_BK = np.where(filled_BK, known_BK - known_BK.sum(axis=1, keepdims=True) / counts_B1, 0.0)
    deviations_B1 = np.sqrt(np.square(centred_BK).sum(axis=1, keepdims=True) / counts_B1)
    rounding_B1 = 1e-12 * np.abs(known_BK).max(axis=1, keepdims=True)
    return np.divide(centred_BK, deviations_B1, out=np.zeros_like(centred_BK), where=deviations_B1 > rounding_B1)
