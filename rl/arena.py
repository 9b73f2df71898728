"""The world that a run's bundles were trained in, rebuilt from the run's settings, and who may play in it.

Shapes: B visitors, n places of a slate, N items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onerec.baselines.popularity import Popularity
from onerec.baselines.scoring import rank_scores
from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.data.histories import Histories
from onerec.data.pathways import History, UserEvents, events_of
from onerec.data.prepared import PreparedData
from onerec.data.tables import ITEM, USER, VECTOR
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.selection import Selector
from onerec.errors import ArtifactError, ConfigError
from onerec.world import oracle
from onerec.world.oracle import Objective
from onerec.world.randomness import fold, uniform
from onerec.world.tables import ARTIFACT_KIND, open_world
from onerec.world.world import World
from rl.simulation import Player, Simulation, Visitors
from tokenizer.artifacts import read_manifest, require_same_hash
from tokenizer.settings import load_settings

_REQUESTS_AT_ONCE = 32  # as `OneRecRecommender` decodes


@dataclass(frozen=True)
class Arena:
    """A world with the data that a run made of its log: item and user numbers are the world's own."""

    world: World
    data: PreparedData
    min_feedback: Mapping[str, float]

    @classmethod
    def open(cls, run: Path) -> "Arena":
        """Rebuild the world of the run in this folder.

        Raises:
            ConfigError: the run's data is not the synthetic world's.
            ArtifactError: the run's data is missing, of another world, or lacks some of its items.
        """
        config = load_settings(RunConfig, run / "config.yaml")
        if config.data.source != "world":
            raise ConfigError(
                f"{run}: found a run on the source {config.data.source!r}, expected 'world'. Only there is it known "
                "what users would have watched; train with data.source=world."
            )
        data = PreparedData.load(run / "data")
        world = World(config.data.world) if config.data.path is None else _stored_world(config.data.path, data)
        _require_catalogue(run, world, data)
        return cls(world, data, config.data.min_feedback)

    def load_bundle(self, folder: Path) -> Bundle:
        """Load a bundle that was made from this arena's data.

        Raises:
            ArtifactError: no bundle, or one of another catalogue or log.
        """
        bundle = Bundle.load(folder)
        require_same_hash(
            f"{folder}: made from the data of another world or catalogue",
            bundle.manifest.inputs["data"],
            self.data.manifest.content_hash,
            "Compare bundles of one world; --run names the folder of the run whose world they play in.",
        )
        return bundle

    def item_counts(self) -> np.ndarray:
        """Training events of each item (N,)."""
        return self.data.histories.training().item_counts(self.data.num_items)

    def simulation(self, num_users: int, num_sessions: int, max_requests: int, seed: int) -> Simulation:
        """Some users of the data, drawn by the seed, at the end of their logs; all of them where fewer are there."""
        num_users = min(num_users, self.data.num_users)
        rows = np.sort(np.random.default_rng(seed).choice(self.data.num_users, num_users, replace=False))
        return self.simulation_of(rows, num_sessions, max_requests)

    def simulation_of(self, rows: np.ndarray, num_sessions: int, max_requests: int) -> Simulation:
        """These users of the data at the end of their logs."""
        users_U = self.data.users[USER].to_numpy()[rows].astype(np.int64)
        events = [self._events_of(int(row)) for row in rows]
        return Simulation(self.world, users_U, events, self.min_feedback, num_sessions, max_requests)

    def _events_of(self, user: int) -> UserEvents:
        histories = self.data.histories
        own = slice(histories.offsets[user], histories.offsets[user + 1])
        feedback = {name: np.asarray(values[own]) for name, values in histories.feedback.items()}
        profile = self.data.users.row(user, named=True)
        return UserEvents(history_of(histories, user), feedback=feedback, profile=profile)

    def oracle(self) -> Player:
        """The ceiling: the slate of highest true expected watch time."""

        def play(visitors: Visitors, num_places: int) -> np.ndarray:
            excluded = visitors.excluded
            return oracle.rank(self.world, visitors.state, num_places, Objective.WATCH_SECONDS, excluded).items_BK

        return play

    def popularity(self) -> Player:
        """A floor: the items with the most training events."""
        popularity = Popularity(self.item_counts())
        return lambda visitors, num_places: popularity.recommend(visitors.excluded, num_places, True).items_BK

    def random(self, seed: int) -> Player:
        """A floor: items at random, the same for a user's request whenever it is asked."""
        items_N = np.arange(self.data.num_items)

        def play(visitors: Visitors, num_places: int) -> np.ndarray:
            key_B = fold(fold(seed, visitors.state.users.users_B), visitors.state.requests_B)
            scores_BN = uniform(key_B[:, None], items_N)
            return rank_scores(scores_BN, visitors.excluded, num_places, True).items_BK

        return play


def bundle_player(bundle: Bundle, wished: Mapping[str, float] | None = None) -> Player:
    """A bundle as the server answers from it: the same encoding, beams and exclusions; `wished` of every request."""
    return recommender_player(bundle.recommender(), wished=wished)


def recommender_player(
    recommender: OneRecRecommender, selector: Selector | None = None, wished: Mapping[str, float] | None = None
) -> Player:
    """A recommender that plays, its beams put in order by a reward model where there is a `selector`."""

    def play(visitors: Visitors, num_places: int) -> np.ndarray:
        slates_Bn = np.empty((len(visitors.histories), num_places), dtype=np.int64)
        for rows in _like_lengths(visitors.histories):
            requests = [replace(events_of(visitors.histories[row]), wished=wished or {}) for row in rows]
            excluded, beams = [visitors.excluded[row] for row in rows], max(recommender.num_beams, num_places)
            found = beams if selector is not None else num_places
            ranking = recommender.search(recommender.encode(requests), found, excluded, beams)
            if selector is not None:
                ranking = selector.select(requests, ranking)
            slates_Bn[rows] = ranking.items_BK[:, :num_places]
        return slates_Bn

    return play


def history_of(histories: Histories, user: int) -> np.ndarray:
    """All items of a user, oldest first, held-out ones included."""
    return np.asarray(histories.items[histories.offsets[user] : histories.offsets[user + 1]])


def _like_lengths(histories: Sequence[History]) -> list[np.ndarray]:
    """Rows in groups of similar history length, so that little is padded."""
    order = np.argsort([len(history) for history in histories], kind="stable")
    return [order[first : first + _REQUESTS_AT_ONCE] for first in range(0, len(order), _REQUESTS_AT_ONCE)]


def _stored_world(folder: Path, data: PreparedData) -> World:
    """The world whose tables the run read, which must still be the same."""
    files = read_manifest(folder, ARTIFACT_KIND).files
    for name, expected in data.manifest.inputs.items():
        require_same_hash(f"{folder / name}: changed since the run read it", files[name], expected, "Prepare it again.")
    return open_world(folder)


def _require_catalogue(run: Path, world: World, data: PreparedData) -> None:
    """Refuse data whose items are not all items of the world, in its order."""
    expected, found = world.catalogue.table(), data.items
    if not found.select(expected.columns).cast({VECTOR: expected.schema[VECTOR]}).equals(expected):
        same = found[ITEM].is_in(expected[ITEM].implode()).sum()
        raise ArtifactError(
            f"{run}: found a catalogue of {found.height} items ({same} ids of the world's), expected all "
            f"{expected.height} items of its world (seed {world.settings.seed}). Train without data.core.item_events "
            "on the world that config.yaml describes."
        )
