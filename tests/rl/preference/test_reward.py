"""The preference reward: as scored one at a time, linear in its weights, and bound to the model's towers."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import rl.rewards.preference as module
from onerec.errors import ConfigError, DataError
from rl.preference.events import EventReader
from rl.preference.network import PSCORE
from rl.rewards.preference import PreferenceReward

ROWS = np.array([9, 0, 3, 7, 3])
ITEMS = np.random.default_rng(2).integers(0, 9, (5, 6))


def reward_of(log: Any, weights: dict[str, float], kind: Any = "attention") -> PreferenceReward:
    return PreferenceReward(log.build(kind), log.histories, weights, "align.reward.preference.weights")


@pytest.mark.parametrize("kind", ["attention", "mixer", "stack"])
def test_a_batch_is_scored_as_one_at_a_time(log: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = reward_of(log, {PSCORE: 1.0, "watch_seconds": 0.1, "like": -2.0}, kind)
    together = reward(ROWS, ITEMS)
    assert together.dtype == np.float32
    for request, row in enumerate(ROWS):
        for place, item in enumerate(ITEMS[request]):
            alone = reward(np.array([row]), np.array([[item]]))
            np.testing.assert_allclose(together[request, place], alone[0, 0], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "_PAIRS_AT_A_TIME", 13)  # two requests at a time
    np.testing.assert_allclose(reward(ROWS, ITEMS), together, rtol=1e-4, atol=1e-5)
    assert together.std() > 0.01


def test_weights_are_what_a_business_pays(log: Any) -> None:
    """The sum of expected values in their own units."""
    model = log.build()
    contexts = EventReader(log.histories, log.signals, 4).contexts(ROWS, model.device)
    scores = model(contexts, torch.from_numpy(ITEMS))
    names = [signal.name for signal in log.signals]
    seconds, like = (scores.towers[names.index(name)].expected_BG for name in ("watch_seconds", "like"))
    expected = (0.5 * seconds - 3 * like + scores.pscores).detach().numpy()
    found = reward_of(log, {"watch_seconds": 0.5, "like": -3.0, PSCORE: 1.0})(ROWS, ITEMS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_where_there_is_no_item_there_is_no_reward(log: Any) -> None:
    items = ITEMS.copy()
    items[:, 2] = -1
    found, full = reward_of(log, {PSCORE: 1.0})(ROWS, items), reward_of(log, {PSCORE: 1.0})(ROWS, ITEMS)
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(np.delete(found, 2, axis=1), np.delete(full, 2, axis=1), rtol=1e-5)


def test_a_weight_of_no_tower_is_refused(log: Any) -> None:
    with pytest.raises(ConfigError, match=r"align\.reward\.preference\.weights: no tower 'watch'.*'watch_seconds'"):
        reward_of(log, {"watch": 1.0})


def test_a_log_without_a_column_that_the_model_reads_is_refused(log: Any) -> None:
    feedback = {name: values for name, values in log.histories.feedback.items() if name != "like"}
    poorer = dataclasses.replace(log.histories, feedback=feedback)
    with pytest.raises(DataError, match="no feedback column 'like'"):
        PreferenceReward(log.build(), poorer, {PSCORE: 1.0}, "weights")
