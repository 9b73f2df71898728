"""Off-policy estimates: what a policy would earn, from a log whose writer's propensities are known.

One row is one exposure: an action drawn with propensity p in some context, its reward r, and the probability pi with
which the policy in question draws the same action there. With the weight w = pi / p, cut at `clip` where asked for:

    IPS    mean of w r                          Horvitz and Thompson, JASA 1952; without a clip unbiased
    SNIPS  sum of w r / sum of w                Swaminathan and Joachims, NeurIPS 2015; within the range of the rewards
    DR     mean of v + w (r - q)                Dudik, Langford and Li, ICML 2011; q predicts the reward of the logged
                                                action, v that of an action of the policy
    ESS    (sum of w)^2 / sum of w^2            as many rows of the policy's own would say about as much

The mean weight should be 1: what it lacks is the share of the policy's actions that the log's writer hardly ever takes.
Intervals resample users with all their rows.

`python -m rl.off_policy --bundle B` shows it at work: a policy that draws each place of a slate from the bundle's
probabilities is estimated from fresh traffic of the world's logging policy and compared with the truth, which the world
knows. The traffic is fresh because on events that trained the bundle the estimate would flatter it.

Shapes: R rows, B users, n places of a slate, N items, X bootstrap samples.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kernels.memory import keep_freed_memory
from onerec.bundle import Bundle
from onerec.data.pathways import History
from onerec.errors import ConfigError, DataError, OneRecError
from onerec.evaluation.metrics import bootstrap_means
from onerec.world.outcomes import chances_of_catalogue
from onerec.world.randomness import fold
from rl.arena import Arena
from rl.simulation import Simulation
from tokenizer.artifacts import write_json

_REQUESTS_AT_ONCE = 32


@dataclass(frozen=True)
class LoggedRewards:
    """Exposures of a log, and what the policy in question thinks of them."""

    users_R: np.ndarray
    rewards_R: np.ndarray
    propensities_R: np.ndarray  # of the logged action under the log's writer
    probabilities_R: np.ndarray  # of the logged action under the policy in question
    predicted_R: np.ndarray | None = None  # reward of the logged action by some model
    policy_predicted_R: np.ndarray | None = None  # by the same model, reward of the policy in the same context

    def check(self) -> None:
        """Refuse what no estimate can be made of.

        Raises:
            DataError: no rows, arrays of unequal length, or probabilities that are none; one prediction without the
                other.
        """
        if (self.predicted_R is None) != (self.policy_predicted_R is None):
            raise DataError("predictions: found one of predicted_R and policy_predicted_R, expected both or none.")
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(lengths.values())) != 1 or not len(self.rewards_R):
            raise DataError(f"found columns of lengths {lengths}, expected as many rows in each and at least one.")
        for name, column, least in (
            ("propensities", self.propensities_R, np.nextafter(0, 1)),
            ("probabilities", self.probabilities_R, 0.0),
        ):
            wrong = ~((column >= least) & (column <= 1 + 1e-6))
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise DataError(
                    f"{name}: found {column[row]} in row {row} ({int(wrong.sum())} such), expected probabilities"
                    f"{' above 0: what was logged had some' if least else ''}."
                )


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OffPolicyEstimates:
    """What a policy would earn an exposure, by three estimators, and how much the log says of it."""

    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate | None  # where there are predictions
    effective_sample_size: float
    mean_weight: float  # before any clip
    clipped_share: float  # of the rows


def estimate(
    log: LoggedRewards, clip: float | None = None, num_samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> OffPolicyEstimates:
    """Estimate a policy's reward an exposure.

    Args:
        clip: largest weight; None for unbiased estimates.
        num_samples: resamplings of the users behind the intervals.

    Raises:
        DataError: as `LoggedRewards.check`, or every weight is 0.
        ConfigError: a clip that is not above 0.
    """
    log.check()
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip: found {clip}, expected a number above 0, or none.")
    raw_R = log.probabilities_R / log.propensities_R
    weights_R = raw_R if clip is None else np.minimum(raw_R, clip)
    if not weights_R.any():
        raise DataError("found weight 0 in every row: the policy takes no action of the log, which says nothing of it.")
    columns = [weights_R, weights_R * log.rewards_R]
    if log.predicted_R is not None and log.policy_predicted_R is not None:
        columns.append(log.policy_predicted_R + weights_R * (log.rewards_R - log.predicted_R))
    values_RM = np.stack(columns, axis=1).astype(np.float64)
    means_XM = bootstrap_means(values_RM, log.users_R, num_samples, seed)
    means_M = values_RM.mean(axis=0)
    return OffPolicyEstimates(
        ips=_bounded(means_M[1], means_XM[:, 1], confidence),
        snips=_bounded(means_M[1] / means_M[0], _ratios(means_XM), confidence),
        doubly_robust=_bounded(means_M[2], means_XM[:, 2], confidence) if len(columns) == 3 else None,
        effective_sample_size=float(weights_R.sum() ** 2 / (weights_R**2).sum()),
        mean_weight=float(raw_R.mean()),
        clipped_share=float((raw_R > weights_R).mean()),
    )


def _ratios(means_XM: np.ndarray) -> np.ndarray:
    """SNIPS of every resample that has any weight."""
    weighty_XM = means_XM[means_XM[:, 0] > 0]
    return np.asarray(weighty_XM[:, 1] / weighty_XM[:, 0])


def _bounded(value: float, samples_X: np.ndarray, confidence: float) -> Estimate:
    low, high = np.quantile(samples_X, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high))


# ---- a bundle on fresh traffic of the logging policy ---------------------------------------------------------------


def item_probabilities(bundle: Bundle, histories: Sequence[History]) -> np.ndarray:
    """Probability (B, N) of every item after each history: the model's own, renormalised over the catalogue."""
    recommender, num_items = bundle.recommender(), bundle.table.num_items
    probabilities_BN = np.empty((len(histories), num_items))
    for first in tqdm(range(0, len(histories), _REQUESTS_AT_ONCE), desc="Scoring the catalogue"):
        rows = slice(first, first + _REQUESTS_AT_ONCE)
        ranking = recommender.search(recommender.encode(histories[rows]), num_items, num_beams=num_items)
        likelihoods = np.exp(ranking.scores_BK.astype(np.float64))
        np.put_along_axis(
            probabilities_BN[rows], ranking.items_BK, likelihoods / likelihoods.sum(axis=1, keepdims=True), axis=1
        )
    return probabilities_BN


def fresh_traffic(arena: Arena, bundle: Bundle, simulation: Simulation, seed: int) -> tuple[LoggedRewards, float]:
    """One request of every user to the logging policy after the log, and the true value of the bundle's policy there.

    The reward is the seconds watched. Predictions are each item's mean seconds in the training events.
    """
    world, state = arena.world, simulation.start
    places_n = np.arange(world.settings.slate_size)
    keys_Bn = fold(fold(fold(seed, state.users.users_B), state.requests_B)[:, None], places_n)
    slates_Bn = world.policy.draw_slates(state, keys_Bn)
    outcomes, _ = world.step(state, slates_Bn)
    probabilities_BN = item_probabilities(bundle, simulation.histories)
    predicted_N = _mean_seconds(arena)
    truth_BN = chances_of_catalogue(world.catalogue, state).watch_seconds
    log = LoggedRewards(
        users_R=np.repeat(state.users.users_B, len(places_n)),
        rewards_R=outcomes.watch_seconds.ravel(),
        propensities_R=world.policy.propensities(state, slates_Bn).ravel(),
        probabilities_R=np.take_along_axis(probabilities_BN, slates_Bn, axis=1).ravel(),
        predicted_R=predicted_N[slates_Bn].ravel(),
        policy_predicted_R=np.repeat(probabilities_BN @ predicted_N, len(places_n)),
    )
    return log, float((probabilities_BN * truth_BN).sum(axis=1).mean())


def _mean_seconds(arena: Arena) -> np.ndarray:
    """Mean seconds watched (N,) of each item in the training events; the mean of all where it has none."""
    training = arena.data.histories.training()
    counts_N, seconds = arena.item_counts(), training.feedback["watch_seconds"].astype(np.float64)
    sums_N = np.bincount(training.items, seconds, minlength=len(counts_N))
    return np.where(counts_N > 0, sums_N / np.maximum(counts_N, 1), seconds.mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate a bundle's policy on fresh traffic and print it beside the truth; 2 where that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m rl.off_policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the policy, trained in the synthetic world")
    parser.add_argument("--run", type=Path, help="the run whose world it plays in (default: the bundle's)")
    parser.add_argument("--users", type=int, default=1000, help="users of the traffic (default: %(default)s)")
    parser.add_argument("--clip", type=float, help="largest weight (default: none, unbiased)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of users, the traffic and the resamplings")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(argv)
    keep_freed_memory()
    try:
        arena = Arena.open(options.run or options.bundle.resolve().parent)
        simulation = arena.simulation(options.users, 1, 1, options.seed)
        log, truth = fresh_traffic(arena, arena.load_bundle(options.bundle), simulation, options.seed)
        found = estimate(log, options.clip, seed=options.seed)
        if options.json is not None:
            write_json(options.json, {"truth": truth, "rows": len(log.rewards_R), **asdict(found)})
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(found, truth, len(log.rewards_R))
    return 0


def _print(found: OffPolicyEstimates, truth: float, num_rows: int) -> None:
    estimates: dict[str, Any] = {"IPS": found.ips, "SNIPS": found.snips, "doubly robust": found.doubly_robust}
    for name, estimated in estimates.items():
        print(f"{name:14} {estimated.value:7.3f}  ({estimated.low:.3f} to {estimated.high:.3f})  seconds an exposure")
    print(f"{'truth':14} {truth:7.3f}")
    print(
        f"{num_rows:,} exposures, effective {found.effective_sample_size:,.0f}, mean weight {found.mean_weight:.3f}, "
        f"clipped {found.clipped_share:.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
