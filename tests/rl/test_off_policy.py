"""Off-policy estimates: by hand, against the world's truth, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.bundle import Bundle
from onerec.errors import ConfigError, DataError
from onerec.world.outcomes import Chances, chances_of_catalogue
from onerec.world.settings import WorldSettings
from onerec.world.world import World
from rl.off_policy import LoggedRewards, OffPolicyEstimates, estimate, item_probabilities, main

BY_HAND = LoggedRewards(
    users_R=np.arange(4),
    rewards_R=np.array([1.0, 0, 2, 4]),
    propensities_R=np.array([0.5, 0.25, 0.5, 0.25]),
    probabilities_R=np.array([0.25, 0.25, 0.5, 0.5]),  # weights 1/2, 1, 1, 2
    predicted_R=np.array([1.0, 1, 1, 3]),
    policy_predicted_R=np.full(4, 2.0),
)


def test_hand_worked_values() -> None:
    found = estimate(BY_HAND)
    assert found.ips.value == pytest.approx((0.5 + 0 + 2 + 8) / 4)
    assert found.snips.value == pytest.approx(10.5 / 4.5)
    assert found.doubly_robust is not None
    assert found.doubly_robust.value == pytest.approx((2 + 1 + 3 + 4) / 4)
    assert found.effective_sample_size == pytest.approx(4.5**2 / 6.25)
    assert (found.mean_weight, found.clipped_share) == (1.125, 0)


def test_a_clip_cuts_weights_and_says_so() -> None:
    found = estimate(BY_HAND, clip=1.0)
    assert found.ips.value == pytest.approx((0.5 + 0 + 2 + 4) / 4)
    assert found.snips.value == pytest.approx(6.5 / 3.5)
    assert found.doubly_robust is not None
    assert found.doubly_robust.value == pytest.approx((2 + 1 + 3 + 3) / 4)
    assert (found.mean_weight, found.clipped_share) == (1.125, 0.25)


def test_rows_of_a_user_are_drawn_together() -> None:
    """Of two users with constant rewards 0 and 1 a resample holds 0, 1 or 2 of the second: IPS 0, 1/2 or 1."""
    log = LoggedRewards(np.repeat([0, 1], 50), np.repeat([0.0, 1.0], 50), np.full(100, 0.5), np.full(100, 0.5))
    found = estimate(log)
    assert (found.ips.low, found.ips.high) == (0, 1)
    alone = estimate(replace(log, users_R=np.arange(100)))
    assert 0.3 < alone.ips.low < alone.ips.high < 0.7


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=20))
def test_snips_is_within_the_rewards_and_the_effective_sample_within_the_rows(
    rows: list[tuple[float, float, float]],
) -> None:
    rewards_R, propensities_R, probabilities_R = np.array(rows).T
    found = estimate(LoggedRewards(np.arange(len(rows)), rewards_R, propensities_R, probabilities_R), num_samples=5)
    assert rewards_R.min() - 1e-9 <= found.snips.low <= found.snips.high <= rewards_R.max() + 1e-9
    assert rewards_R.min() - 1e-9 <= found.snips.value <= rewards_R.max() + 1e-9
    assert 1 - 1e-9 <= found.effective_sample_size <= len(rows) + 1e-9


# ---- against the world's truth -----------------------------------------------------------------------------------

WORLD = World(WorldSettings(num_users=12_000, num_items=100, num_events=12_000, seed=21))


def policy(kind: str, chances: Chances) -> np.ndarray:
    """Probabilities (B, N) of three policies that have little in common with each other."""
    if kind == "uniform":
        return np.full(chances.click.shape, 1 / chances.click.shape[1])
    if kind == "popularity":
        return np.broadcast_to(WORLD.catalogue.popularity_N, chances.click.shape)
    weights_BN = chances.watch_seconds**2
    return weights_BN / weights_BN.sum(axis=1, keepdims=True)


def logged(kind: str, users: np.ndarray) -> tuple[LoggedRewards, float, float]:
    """Exposures of the logging policy judged by another; the truth for it; and what the logging policy earns."""
    state = WORLD.users_at(users, np.zeros(len(users), np.int64))
    chances = chances_of_catalogue(WORLD.catalogue, state)
    probabilities_BN = policy(kind, chances)
    keys_Bn = np.random.default_rng(1).integers(2**63, size=(len(users), 5)).astype(np.uint64)
    slates_Bn = WORLD.policy.draw_slates(state, keys_Bn)
    outcomes, _ = WORLD.step(state, slates_Bn)
    predicted_N = chances.watch_seconds.mean(axis=0) * 0.7  # a model that is wrong on purpose
    log = LoggedRewards(
        users_R=np.repeat(users, 5),
        rewards_R=outcomes.watch_seconds.ravel(),
        propensities_R=WORLD.policy.propensities(state, slates_Bn).ravel(),
        probabilities_R=np.take_along_axis(probabilities_BN, slates_Bn, axis=1).ravel(),
        predicted_R=predicted_N[slates_Bn].ravel(),
        policy_predicted_R=np.repeat(probabilities_BN @ predicted_N, 5),
    )
    return log, float((probabilities_BN * chances.watch_seconds).sum(axis=1).mean()), float(log.rewards_R.mean())


@pytest.mark.parametrize("kind", ["uniform", "popularity", "true watch time"])
def test_estimates_meet_the_truth_within_their_intervals(kind: str) -> None:
    log, truth, logging_mean = logged(kind, np.arange(12_000))
    found = estimate(log, num_samples=300, confidence=0.999)
    assert found.doubly_robust is not None
    for estimated in (found.ips, found.snips, found.doubly_robust):
        assert estimated.low < truth < estimated.high
        assert estimated.high - estimated.low < 0.2 * truth
        assert not estimated.low < logging_mean < estimated.high  # it is another policy's value
    assert found.mean_weight == pytest.approx(1, abs=0.1)
    assert found.effective_sample_size < len(log.rewards_R)


def test_estimates_are_unbiased_and_a_clip_is_not() -> None:
    """Over many small logs the mean error of IPS and DR is nothing but noise; clipped weights lose reward."""
    errors: dict[str, list[float]] = {"ips": [], "doubly_robust": [], "clipped": []}
    for part in np.array_split(np.arange(12_000), 150):
        log, truth, _ = logged("true watch time", part)
        found, clipped = estimate(log, num_samples=1), estimate(log, clip=1.5, num_samples=1)
        assert found.doubly_robust is not None
        errors["ips"].append(found.ips.value - truth)
        errors["doubly_robust"].append(found.doubly_robust.value - truth)
        errors["clipped"].append(clipped.ips.value - truth)
    scores = {name: np.mean(values) / np.std(values) * np.sqrt(150) for name, values in errors.items()}
    assert abs(scores["ips"]) < 4
    assert abs(scores["doubly_robust"]) < 4
    assert scores["clipped"] < -8
    assert np.std(errors["doubly_robust"]) < np.std(errors["ips"])


# ---- a bundle on fresh traffic -----------------------------------------------------------------------------------


def test_item_probabilities_are_those_of_the_search_made_to_sum_to_one(world_run: Path) -> None:
    bundle = Bundle.load(world_run / "bundle")
    histories = [np.array([3, 1, 4]), np.array([1, 5]), np.array([], dtype=np.int64)]
    probabilities_BN = item_probabilities(bundle, histories)
    np.testing.assert_allclose(probabilities_BN.sum(axis=1), 1)
    ranking = bundle.recommender(num_beams=100).recommend(histories, 100, exclude_seen=False)
    sorted_BN = np.take_along_axis(probabilities_BN, ranking.items_BK.astype(np.int64), axis=1)
    expected_BN = np.exp(ranking.scores_BK - ranking.scores_BK[:, :1])
    np.testing.assert_allclose(sorted_BN / sorted_BN[:, :1], expected_BN, rtol=1e-4)


def test_a_bundle_is_estimated_beside_the_truth(
    world_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    assert main(["--bundle", str(world_run / "bundle"), "--users", "200", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["rows"] == 200 * 5
    for name in ("ips", "snips", "doubly_robust"):
        wide = 2 * (found[name]["high"] - found[name]["low"])
        assert abs(found[name]["value"] - found["truth"]) < wide < 4 * found["truth"]
    assert "truth" in capsys.readouterr().out


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensities_R": np.array([0.5, 0.0, 0.5, 0.25])}, r"propensities: found 0.0 in row 1 \(1 such\)"),
        ({"propensities_R": np.array([0.5, np.nan, 0.5, 2.0])}, r"propensities: found nan in row 1 \(2 such\)"),
        ({"probabilities_R": np.array([0.5, 0.5, -0.1, 0.25])}, r"probabilities: found -0.1 in row 2"),
        ({"rewards_R": np.ones(3)}, "expected as many rows in each"),
        ({"predicted_R": None}, "found one of predicted_R and policy_predicted_R"),
        ({"probabilities_R": np.zeros(4)}, "the policy takes no action of the log"),
    ],
)
def test_what_no_estimate_can_be_made_of(changes: dict[str, np.ndarray | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimate(replace(BY_HAND, **changes))


def test_an_empty_log_and_a_clip_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        estimate(LoggedRewards(*[np.zeros(0)] * 4))
    with pytest.raises(ConfigError, match=r"clip: found 0\.0, expected a number above 0"):
        estimate(BY_HAND, clip=0.0)


def test_without_predictions_there_is_no_doubly_robust_estimate() -> None:
    found: OffPolicyEstimates = estimate(replace(BY_HAND, predicted_R=None, policy_predicted_R=None))
    assert found.doubly_robust is None
