"""Industrial rules one by one by hand-worked values, in sequence, and refused where they name what is not there."""

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.errors import ConfigError
from rl.rewards.industrial import IndustrialRules, Rule
from tokenizer.settings import Settings, build_settings

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "genre": ["farm", "farm", "news", None],
        "creator": [7, 8, 8, 9],
        "published": [date(2024, 1, 1), date(2024, 1, 11), date(2024, 1, 21), None],
        "age_rank": [0.0, 10.0, 20.0, None],
    }
)


class Holder(Settings):
    rules: tuple[Rule, ...]


def rules_of(*rules: dict[str, Any]) -> tuple[Rule, ...]:
    return build_settings(Holder, {"rules": list(rules)}, "test.yaml").rules


def apply(rewards: list[list[float]], items: list[list[int]], *rules: dict[str, Any]) -> np.ndarray:
    return IndustrialRules(rules_of(*rules), ITEMS).apply(np.array(rewards), np.array(items))


def test_a_kind_past_its_share_is_scaled_and_below_it_left_alone() -> None:
    cap = {"kind": "share_cap", "column": "genre", "values": ["farm"], "max_share": 0.5, "factor": 0.25}
    assert apply([[1, 2], [3, 4]], [[0, 2], [2, 1]], cap).tolist() == [[1, 2], [3, 4]]  # 2 of 4: not past
    assert apply([[1, 2], [3, 4]], [[0, 0], [2, 1]], cap).tolist() == [[0.25, 0.5], [3, 1]]  # 3 of 4
    # Missing places count neither as items nor as the kind.
    assert apply([[1, 2], [3, 4]], [[0, -1], [-1, -1]], cap).tolist() == [[0.25, 2], [3, 4]]


def test_a_factor_below_one_never_makes_a_bad_reward_better() -> None:
    boost = {"kind": "boost", "column": "creator", "values": [8], "factor": 0.5}
    assert apply([[2.0, -1.0, 0.0, -1.0]], [[1, 2, 1, 0]], boost).tolist() == [[1.0, -2.0, 0.0, -1.0]]


def test_a_boost_raises_only_its_values() -> None:
    boost = {"kind": "boost", "column": "creator", "values": [7, 9], "factor": 2}
    assert apply([[1.0, 1.0, -1.0]], [[0, 1, 3]], boost).tolist() == [[2.0, 1.0, -0.5]]


@pytest.mark.parametrize(("column", "half_life"), [("age_rank", 10), ("published", 10 * 86_400)])
def test_freshness_halves_with_age(column: str, half_life: float) -> None:
    fresh = {"kind": "freshness", "column": column, "half_life": half_life, "weight": 0.8}
    found = apply([[1.0, 1.0, 1.0, 1.0]], [[0, 1, 2, 3]], fresh)
    np.testing.assert_allclose(found, [[1.2, 1.4, 1.8, 1.0]], rtol=1e-6)


def test_diversity_takes_by_the_share_of_others_alike() -> None:
    diverse = {"kind": "diversity", "column": "creator", "weight": 0.6}
    # creators 8, 8, 7, 9: of three others one is alike to each of the first two
    np.testing.assert_allclose(apply([[1.0] * 4], [[1, 2, 0, 3]], diverse), [[0.8, 0.8, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(apply([[1.0] * 3], [[1, 2, -1]], diverse), [[0.4, 0.4, 1]], rtol=1e-6)
    np.testing.assert_allclose(apply([[1.0] * 2], [[1, -1]], diverse), [[1, 1]], rtol=1e-6)


def test_coverage_takes_by_how_often_an_item_has_its_even_share() -> None:
    """Of four samples three are item 0: three times its share of a catalogue of four, the other once its own."""
    cover = {"kind": "coverage", "weight": 0.5}
    expected = [[1 - 0.5 * np.log(3), 1 - 0.5 * np.log(3)], [1 - 0.5 * np.log(3), 1.0]]
    np.testing.assert_allclose(apply([[1.0, 1.0], [1.0, 1.0]], [[0, 0], [0, 2]], cover), expected, rtol=1e-6)
    found = apply([[1.0, 1.0], [1.0, 1.0]], [[1, -1], [3, 2]], cover)  # three samples, each 4/3 of its share
    np.testing.assert_allclose(found, [[1 - 0.5 * np.log(4 / 3), 1], [1 - 0.5 * np.log(4 / 3)] * 2], rtol=1e-6)


def test_rules_follow_each_other_and_the_forbidden_has_the_last_word() -> None:
    boost = {"kind": "boost", "column": "genre", "values": ["farm"], "factor": 3}
    forbid = {"kind": "forbidden", "column": "item_id", "values": ["b"], "reward": -2}
    assert apply([[1.0, 1.0, 1.0]], [[0, 1, 2]], boost, forbid).tolist() == [[3.0, -2.0, 1.0]]
    assert apply([[1.0, 1.0, 1.0]], [[0, 1, 2]], forbid, boost)[0, 1] == pytest.approx(-2 / 3)


def test_no_rule_changes_nothing() -> None:
    assert apply([[1.0, -1.0]], [[0, -1]]).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "diversity", "column": "gener", "weight": 1}, "no column 'gener'. Did you mean 'genre'"),
        ({"kind": "boost", "column": "genre", "values": ["farms"], "factor": 2}, "no item has 'farms'.*mean 'farm'"),
        ({"kind": "freshness", "column": "genre", "half_life": 1, "weight": 1}, "is String, expected numbers or dates"),
    ],
)
def test_what_the_catalogue_lacks_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndustrialRules(rules_of(rule), ITEMS)


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'weight'"):
        rules_of({"kind": "diversity", "column": "genre", "wieght": 1})
