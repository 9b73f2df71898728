"""A small log with feedback of every kind, and an untrained reward model that reads it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from onerec.data.histories import Histories
from onerec.data.settings import FeedbackKind
from onerec.model.preference.contexts import EventReader
from onerec.model.preference.network import PreferenceConfig, PreferenceModel
from onerec.model.preference.settings import BackboneKind, BackboneSettings, WatchTimeSettings
from onerec.model.preference.signals import Signal

NUM_ITEMS = 9


def signal(name: str, kind: FeedbackKind, positive_from: float, mean: float, bounds: tuple[float, ...]) -> Signal:
    return Signal(
        name=name,
        kind=kind,
        positive_from=positive_from,
        is_good=name != "skip",
        mean=mean,
        bounds=bounds,
        pscore_weight=1.0,
    )


SIGNALS = (
    signal("like", FeedbackKind.BINARY, 1.0, 0.5, (1.0,)),
    signal("skip", FeedbackKind.BINARY, 1.0, 0.5, (1.0,)),
    signal("comments", FeedbackKind.COUNT, 1.0, 1.0, (1.0, 2.0)),
    signal("watch_seconds", FeedbackKind.SECONDS, 14.0, 20.0, (3.0, 8.0, 14.0, 25.0, 50.0)),
    signal("rating", FeedbackKind.RATING, 3.0, 3.0, (2.0, 3.0, 4.0, 5.0)),
)


@dataclass(frozen=True)
class Log:
    """Events, what its columns mean, and how to build a model of them."""

    histories: Histories
    signals: tuple[Signal, ...]
    build: Callable[..., PreferenceModel]

    def reader(self, max_history_items: int = 4) -> EventReader:
        return EventReader(self.histories, self.signals, max_history_items)


def random_histories(num_users: int = 7, seed: int = 0) -> Histories:
    """Users of 1 to 12 training events with random feedback, a tenth of it not recorded."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 13, num_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    num_events = int(offsets[-1])
    times = np.concatenate([np.sort(rng.choice(1000, length, replace=False)) for length in lengths])
    feedback = {
        "like": rng.integers(0, 2, num_events),
        "skip": rng.integers(0, 2, num_events),
        "comments": rng.poisson(1.0, num_events),
        "watch_seconds": rng.exponential(20.0, num_events),
        "rating": rng.integers(1, 6, num_events),
    }
    columns = {name: np.where(rng.random(num_events) < 0.1, np.nan, column) for name, column in feedback.items()}
    items = rng.integers(0, NUM_ITEMS, num_events).astype(np.int32)
    as_float = {name: column.astype(np.float32) for name, column in columns.items()}
    return Histories(offsets, items, times, np.zeros(num_events, dtype=np.uint8), as_float)


@pytest.fixture
def log() -> Log:
    histories = random_histories()

    def build(kind: BackboneKind = "attention", **changes: object) -> PreferenceModel:
        backbone = BackboneSettings(
            kind=kind, width=8, hidden_width=12, num_tokens=4, max_history_items=4, dropout=0.0, **changes
        )
        torch.manual_seed(0)
        config = PreferenceConfig(
            num_items=NUM_ITEMS,
            feature_sizes=(3, 2),
            signals=[signal.model_dump(mode="json") for signal in SIGNALS],
            backbone=backbone.model_dump(),
            watch_time=WatchTimeSettings(num_gaussians=3).model_dump(),
            tower_width=6,
            catalogue_hash="hash",
        )
        model = PreferenceModel(config).eval()
        model.set_features(np.stack([np.arange(NUM_ITEMS) % 3, np.arange(NUM_ITEMS) % 2], axis=1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)  # far from one another, so that scores differ
        return model

    return Log(histories, SIGNALS, build)
