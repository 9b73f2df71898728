"""The format reward: K random samples of a group, legal ones raised, all others untouched."""

import numpy as np
import pytest
from scipy.stats import chisquare

from onerec.errors import ConfigError
from rl.rewards.format import format_advantages


def test_k_of_an_all_legal_group_are_raised() -> None:
    advantages_BG = format_advantages(np.ones((7, 10), dtype=bool), 3, np.random.default_rng(0))
    assert advantages_BG.sum(axis=1).tolist() == [3] * 7
    assert set(advantages_BG.ravel().tolist()) == {0, 1}


def test_illegal_samples_are_dropped_and_not_replaced() -> None:
    legal_BG = np.zeros((2000, 4), dtype=bool)
    legal_BG[:, 0] = True
    advantages_BG = format_advantages(legal_BG, 2, np.random.default_rng(0))
    assert advantages_BG[:, 1:].sum() == 0
    assert advantages_BG[:, 0].mean() == pytest.approx(0.5, abs=0.05)  # chosen in half of the groups, K / G


def test_every_sample_is_as_likely_to_be_chosen() -> None:
    advantages_BG = format_advantages(np.ones((4000, 5), dtype=bool), 2, np.random.default_rng(1))
    assert chisquare(advantages_BG.sum(axis=0)).pvalue > 1e-3


@pytest.mark.parametrize("num_chosen", [0, 5])
def test_more_than_the_group_is_refused(num_chosen: int) -> None:
    with pytest.raises(ConfigError, match=f"found {num_chosen} samples to choose of 4, expected 1 to 4"):
        format_advantages(np.ones((1, 4), dtype=bool), num_chosen, np.random.default_rng(0))
