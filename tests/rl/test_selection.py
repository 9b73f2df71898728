"""The metrics before and after selection among the beams."""

from types import SimpleNamespace

import numpy as np
import pytest

from onerec.data.histories import Split
from onerec.evaluation.recommender import Ranking
from onerec.evaluation.settings import EvaluationSettings
from rl.selection import measure_selection


class Fixed:
    """Recommends items 0, 1, 2 … to everyone."""

    name = "fixed"

    def recommend(self, histories: list[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
        assert exclude_seen
        items = np.tile(np.arange(k, dtype=np.int32), (len(histories), 1))
        return Ranking(items, -items.astype(np.float32))


def test_a_judge_who_knows_the_target_puts_it_first(toy) -> None:
    histories = toy.histories
    data = SimpleNamespace(histories=histories, num_items=14)
    asked = []

    def judge(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return (items == histories.items[rows][:, None]).astype(np.float64)

    settings = EvaluationSettings(ks=[1, 10], batch_size=5)
    found = measure_selection(Fixed(), judge, data, settings, num_beams=10, share=1.0)
    targets = histories.items[histories.targets(Split.TEST)]
    assert asked == histories.targets(Split.TEST).tolist()
    assert found["rows"] == 12
    assert found["beams"]["recall@10"] == found["selected"]["recall@10"] == pytest.approx((targets < 10).mean())
    assert found["selected"]["recall@1"] == found["selected"]["recall@10"]
    assert found["beams"]["recall@1"] == pytest.approx((targets == 0).mean())
