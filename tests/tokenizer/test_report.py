import math

import numpy as np
import pytest

from tokenizer.config import ReportSettings, TokenizerSettings
from tokenizer.quantizers import fit_quantizer
from tokenizer.report import count_collisions, describe, failures, level_use, neighbour_agreement


def test_level_use_worked_by_hand() -> None:
    """Codes 0 0 1 3 of 8: three used, entropy = 1/2 log 2 + 2 * 1/4 log 4 = 3/2 log 2."""
    use = level_use(np.array([0, 0, 1, 3]), 8)
    assert (use.possible, use.used, use.dead, use.largest) == (4, 3, 5, 2)
    assert use.entropy_nats == pytest.approx(1.5 * math.log(2))
    assert use.perplexity == pytest.approx(2**1.5)
    assert use.perplexity_share == pytest.approx(2**1.5 / 4)


def test_collisions_worked_by_hand() -> None:
    counts = count_collisions(np.array([[0, 1], [0, 1], [1, 1], [0, 1], [1, 0]]), (2, 2))
    assert (counts.num_distinct, counts.num_colliding, counts.largest_bucket) == (3, 3, 3)
    assert counts.buckets_by_size == {1: 2, 3: 1}
    assert counts.collision_share == pytest.approx(0.6)


def test_neighbours_worked_by_hand() -> None:
    """Two pairs of near items: one pair shares both codes, the other only the first."""
    vectors = np.array([[0.0], [0.1], [5.0], [5.1]], dtype=np.float32)
    codes = np.array([[0, 0], [0, 0], [1, 0], [1, 1]], dtype=np.int32)
    agreement = neighbour_agreement(codes, vectors, ReportSettings(num_neighbours=1), seed=0)
    assert agreement.by_prefix == [1.0, 0.5]


def test_one_item_has_no_neighbours() -> None:
    agreement = neighbour_agreement(np.zeros((1, 2), dtype=np.int32), np.ones((1, 3)), ReportSettings(), seed=0)
    assert agreement.num_neighbours == 0


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"min_level_use": 1.0}, "level 2 uses"),
        ({"min_perplexity_share": 1.0}, "min_perplexity_share"),
        ({"max_bucket_share": 0.01}, "max_bucket_share"),
        ({"max_collision_share": 0.0}, "max_collision_share"),
        ({"min_neighbour_agreement": 1.0}, "min_neighbour_agreement"),
    ],
)
def test_every_threshold_fails_by_itself(thresholds: dict[str, float], message: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    vectors[10:40] = vectors[9]
    settings = TokenizerSettings.model_validate({"quantizer": {"codes_per_level": [6, 6], "iterations": 4}})
    quantizer, codes = fit_quantizer(vectors, settings.quantizer, seed=0)
    report = describe(codes, quantizer, vectors, settings, {})
    lax = {"min_level_use": 0.0, "min_perplexity_share": 0.0, "max_bucket_share": 1.0}
    assert failures(report, ReportSettings.model_validate(lax)) == []
    if "min_level_use" in thresholds:
        report.levels[1].use_share = 0.5
    broken = failures(report, ReportSettings.model_validate(lax | thresholds))
    assert any(message in sentence for sentence in broken)
