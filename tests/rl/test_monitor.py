"""The monitor's figures by hand, and the rule that is broken first."""

import numpy as np
import pytest
import torch

from rl.monitor import Baseline, Window, find_breach, probe
from rl.rollout import Prompts
from rl.settings import MonitorSettings


def test_figures_of_a_window_by_hand() -> None:
    window = Window(np.array([0, 5, 5, 9]), torch.device("cpu"))  # popularity percentiles 1/8, 1/2, 1/2, 7/8
    present_BG = torch.tensor([[True, True], [True, False]])
    window.add(
        items_BG=torch.tensor([[0, 3], [1, 3]]),
        present_BG=present_BG,
        rewards_BG=torch.tensor([[1.0, 2.0], [4.0, 100.0]]),
        targets_B=torch.tensor([3, 3]),  # the second group's 3 is not present
        spread_B=torch.tensor([True, False]),
    )
    figures = window.figures(*window.tensors())
    assert figures == pytest.approx(
        {
            "reward": (1.5 + 4) / 2,
            "hit_rate": 0.5,
            "groups_without_spread": 0.5,
            "coverage": 3 / 4,
            "popularity": (1 / 8 + 7 / 8 + 1 / 2) / 3,
        }
    )


def test_the_probe_of_the_reference_itself_has_no_divergence(toy) -> None:
    prompts = Prompts.of(toy.histories, 4)
    batch = prompts.batch(prompts.rows[:10], torch.device("cpu"))
    figures = probe(toy.model, toy.model, batch, toy.trie, seed=0)
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < figures["legality"] < 1
    assert 0 < figures["entropy"] < np.log(14)
    assert probe(toy.model, toy.model, batch, toy.trie, seed=0) == figures


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"coverage": 0.24}, "coverage: found 0.2400, expected at least 0.2500"),
        ({"legality": 0.3}, "legality: found 0.3000, expected at least 0.4000"),
        ({"eval_ndcg@10": 0.179}, r"held-out ndcg@10: found 0.1790, expected at least 0.1800"),
        ({"coverage": 0.25, "legality": 0.4, "eval_ndcg@10": 0.181}, None),
    ],
)
def test_the_rule_that_is_broken_is_told(changes: dict[str, float], expected: str | None) -> None:
    settings = MonitorSettings(min_coverage_ratio=0.5, min_legality_ratio=0.5, max_metric_drop=0.1)
    figures = {"coverage": 0.5, "legality": 0.8, "eval_ndcg@10": 0.2, **changes}
    assert find_breach(settings, Baseline(metric=0.2, legality=0.8), 0.5, figures, "ndcg@10") == expected
