"""A reward model's judgement: as scored one at a time, linear in its weights, and bound to the model's towers."""

from typing import Any

import numpy as np
import pytest
import torch

import onerec.model.preference.judge as module
from onerec.errors import ConfigError
from onerec.model.preference.judge import PreferenceJudge
from onerec.model.preference.network import PSCORE

ROWS = np.array([9, 0, 3, 7, 3])
ITEMS = np.random.default_rng(2).integers(0, 9, (5, 6))


def judged(log: Any, weights: dict[str, float], rows: np.ndarray, items: np.ndarray, kind: Any = "attention") -> Any:
    judge = PreferenceJudge(log.build(kind), weights, "reward.selection.weights")
    return judge(log.reader().contexts(rows, torch.device("cpu")), items)


@pytest.mark.parametrize("kind", ["attention", "mixer", "stack"])
def test_a_batch_is_scored_as_one_at_a_time(log: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {PSCORE: 1.0, "watch_seconds": 0.1, "like": -2.0}
    together = judged(log, weights, ROWS, ITEMS, kind)
    assert together.dtype == np.float32
    for request, row in enumerate(ROWS):
        for place, item in enumerate(ITEMS[request]):
            alone = judged(log, weights, np.array([row]), np.array([[item]]), kind)
            np.testing.assert_allclose(together[request, place], alone[0, 0], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "_PAIRS_AT_A_TIME", 13)  # two requests at a time
    np.testing.assert_allclose(judged(log, weights, ROWS, ITEMS, kind), together, rtol=1e-4, atol=1e-5)
    assert together.std() > 0.01


def test_weights_are_what_a_business_pays(log: Any) -> None:
    """The sum of expected values in their own units."""
    model = log.build()
    scores = model(log.reader().contexts(ROWS, model.device), torch.from_numpy(ITEMS))
    names = [signal.name for signal in log.signals]
    seconds, like = (scores.towers[names.index(name)].expected_BG for name in ("watch_seconds", "like"))
    expected = (0.5 * seconds - 3 * like + scores.pscores).detach().numpy()
    found = judged(log, {"watch_seconds": 0.5, "like": -3.0, PSCORE: 1.0}, ROWS, ITEMS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_where_there_is_no_item_there_is_no_reward(log: Any) -> None:
    items = ITEMS.copy()
    items[:, 2] = -1
    found, full = judged(log, {PSCORE: 1.0}, ROWS, items), judged(log, {PSCORE: 1.0}, ROWS, ITEMS)
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(np.delete(found, 2, axis=1), np.delete(full, 2, axis=1), rtol=1e-5)


def test_a_weight_of_no_tower_is_refused(log: Any) -> None:
    with pytest.raises(ConfigError, match=r"reward\.selection\.weights: no tower 'watch'.*'watch_seconds'"):
        PreferenceJudge(log.build(), {"watch": 1.0}, "reward.selection.weights")
