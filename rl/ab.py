"""Policies against each other in the world: `python -m rl.ab --bundle A --bundle B [--users N --sessions M --seed S]`.

Simulated users of the world that the bundles were trained in play sessions against each bundle, answered as the server
answers, and against three policies beside them: the oracle, which ranks by true expected watch time, is the ceiling;
popularity and chance are the floors. All play on one grid with the same luck (rl/simulation.py), so differences are
paired by user. The first bundle is what the others are compared with.

- `true_watch_seconds`  true expectation of the seconds watched a place of a slate, mean of each user's places
- `watch_minutes`       minutes watched, by user, over all sessions
- `likes`, `sessions`   by user
- `requests_a_session`  by user, the length of his sessions
- `cold_share`          share of the places that went to the tenth of the catalogue with the fewest training events
- `coverage`            share of the catalogue that was shown to anyone
- `gap_closed`          (other - first) / (oracle - first), in true_watch_seconds and watch_minutes. The oracle is the
                        ceiling of the former; it ranks a slate at a time, so sessions could be longer still.

Intervals resample users, each with everything he did, and are paired as well. Coverage falls with the number of
different users in a resample; its interval is therefore moved to where the estimate is.

Shapes: U users, E exposures, M metrics, N items, X bootstrap samples.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from kernels.memory import keep_freed_memory
from onerec.errors import ConfigError, OneRecError
from onerec.evaluation.metrics import Interval, bootstrap_means, compare_paired
from rl.arena import Arena, bundle_player
from rl.simulation import Play, Player
from tokenizer.artifacts import write_json

USER_METRICS = ("true_watch_seconds", "watch_minutes", "likes", "sessions", "requests_a_session", "cold_share")
GAP_METRICS = ("true_watch_seconds", "watch_minutes")
CEILING, FLOORS = "oracle", ("popularity", "random")
_COLD_SHARE = 0.1  # of the catalogue
_COLUMN_WIDTH = 16


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    num_samples: int
    confidence: float
    seed: int

    def bounds(self, samples_X: np.ndarray) -> Interval:
        """Percentiles of resampled figures."""
        low, high = np.quantile(samples_X, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Interval(float(low), float(high))

    def means(self, values_UM: np.ndarray) -> np.ndarray:
        """Resampled means (X, M); the same users are drawn whatever the values."""
        return bootstrap_means(values_UM, np.arange(len(values_UM)), self.num_samples, self.seed)


@dataclass(frozen=True)
class Measured:
    """One policy's figures: user by user, and the coverage of all of them and of resampled users."""

    values_UM: np.ndarray  # in the order of USER_METRICS
    coverage: float
    coverage_X: np.ndarray  # moved so that its mean is `coverage`

    def figures(self, resampling: Resampling) -> dict[str, dict[str, Any]]:
        """Mean and interval of every metric."""
        means_XM = resampling.means(self.values_UM)
        samples = [*means_XM.T, self.coverage_X]
        means = [*self.values_UM.mean(axis=0).tolist(), self.coverage]
        return {
            name: {"mean": mean, "interval": _listed(resampling.bounds(sample_X))}
            for name, mean, sample_X in zip((*USER_METRICS, "coverage"), means, samples, strict=True)
        }


def measure(play: Play, counts_N: np.ndarray, resampling: Resampling) -> Measured:
    """The figures of a play; `counts_N` are the training events of each item."""
    num_places_U = play.requests_U * play.slate_size
    cold_N = np.zeros(len(counts_N), dtype=bool)
    cold_N[np.argsort(counts_N, kind="stable")[: max(1, round(_COLD_SHARE * len(counts_N)))]] = True
    columns = (
        play.per_user(play.expected_seconds_E) / num_places_U,
        play.per_user(play.watch_seconds_E) / 60,
        play.per_user(play.likes_E),
        play.sessions_U,
        play.requests_U / play.sessions_U,
        play.per_user(cold_N[play.items_E]) / num_places_U,
    )
    coverage, coverage_X = _coverage(play, len(counts_N), resampling)
    return Measured(np.stack(columns, axis=1).astype(np.float64), coverage, coverage_X)


def compare(other: Measured, first: Measured, resampling: Resampling) -> dict[str, dict[str, Any]]:
    """Difference of every metric with its paired interval."""
    num_users, resampled = len(first.values_UM), (resampling.num_samples, resampling.confidence, resampling.seed)
    paired = compare_paired(other.values_UM, first.values_UM, np.arange(num_users), *resampled)
    figures = {
        name: {"difference": found.difference, "interval": _listed(found.interval)}
        for name, found in zip(USER_METRICS, paired, strict=True)
    }
    difference_X = other.coverage_X - first.coverage_X
    difference = other.coverage - first.coverage
    figures["coverage"] = {"difference": difference, "interval": _listed(resampling.bounds(difference_X))}
    return figures


def gap_closed(
    other: Measured, first: Measured, ceiling: Measured, resampling: Resampling
) -> dict[str, dict[str, Any] | None]:
    """Share of the first policy's gap to the ceiling that the other closes; None where there may be no gap."""
    shares: dict[str, dict[str, Any] | None] = {}
    for name in GAP_METRICS:
        column = USER_METRICS.index(name)
        gains_U2 = np.stack(
            [policy.values_UM[:, column] - first.values_UM[:, column] for policy in (other, ceiling)], axis=1
        )
        gain, gap = gains_U2.mean(axis=0)
        gains_X2 = resampling.means(gains_U2)
        clear = (gains_X2[:, 1] > 0).all()
        bounds = resampling.bounds(gains_X2[:, 0] / gains_X2[:, 1]) if clear else None
        shares[name] = None if bounds is None else {"share": float(gain / gap), "interval": _listed(bounds)}
    return shares


def run(arena: Arena, bundles: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Let the bundles play and put the figures together."""
    players = {name: bundle_player(arena.load_bundle(path)) for name, path in bundles.items()}
    return {"bundles": {name: str(path) for name, path in bundles.items()}, **contest(arena, players, options)}


def contest(arena: Arena, players: dict[str, Player], options: argparse.Namespace) -> dict[str, Any]:
    """Let all players play beside the ceiling and the floors; the first is what the others are compared with."""
    first, *others = players
    rivals = {CEILING: arena.oracle(), "popularity": arena.popularity(), "random": arena.random(options.seed)}
    simulation = arena.simulation(options.users, options.sessions, options.max_requests, options.seed)
    resampling, counts_N = Resampling(options.samples, options.confidence, options.seed), arena.item_counts()
    measured = {
        name: measure(simulation.play(player), counts_N, resampling)
        for name, player in tqdm((players | rivals).items(), desc="Playing", unit="policy")
    }
    return {
        "world": arena.world.settings.model_dump(mode="json"),
        "settings": {
            "users": len(simulation.users_U),
            **{name: getattr(options, name) for name in ("sessions", "max_requests", "seed", "samples", "confidence")},
        },
        "policies": {name: figures.figures(resampling) for name, figures in measured.items()},
        "differences": {name: compare(measured[name], measured[first], resampling) for name in others},
        "gap_closed": {
            name: gap_closed(measured[name], measured[first], measured[CEILING], resampling) for name in others
        },
    }


def print_figures(figures: dict[str, Any], console: Console) -> None:
    """The policies side by side, then what each further bundle changes against the first."""
    policies = figures["policies"]
    table = _table(f"{figures['settings']['users']:,} users", [*policies])
    for metric in (*USER_METRICS, "coverage"):
        table.add_row(metric, *(_with_margin(policy[metric]) for policy in policies.values()))
    console.print(table)
    for name, differences in figures["differences"].items():
        table = _table(f"{name} against {next(iter(policies))}", ["difference", "interval", "of the gap", "interval"])
        for metric, found in differences.items():
            closed = figures["gap_closed"][name].get(metric)
            share = ["", ""] if closed is None else [f"{closed['share']:.1%}", _interval(closed["interval"], ".1%")]
            table.add_row(metric, f"{found['difference']:+.4g}", _interval(found["interval"], "+.3g"), *share)
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Play and print the comparison; 2 where it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m rl.ab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, action="append", required=True, help="a bundle; the first is the base")
    parser.add_argument("--run", type=Path, help="the run whose world they play in (default: the first bundle's)")
    add_options(parser)
    options = parser.parse_args(argv)
    bundles = {chr(ord("A") + place): path for place, path in enumerate(options.bundle)}
    status = answer(
        options, lambda: run(Arena.open(options.run or options.bundle[0].resolve().parent), bundles, options)
    )
    if status == 0:
        for name, path in bundles.items():
            print(f"{name}: {path}")
    return status


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long who plays, how intervals are made, and where the figures go."""
    parser.add_argument("--users", type=int, default=1000, help="simulated users (default: %(default)s)")
    parser.add_argument("--sessions", type=int, default=5, help="occasions for a session (default: %(default)s)")
    parser.add_argument("--max-requests", type=int, default=20, help="slates of a session at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of users, chance, and the resamplings")
    parser.add_argument("--samples", type=int, default=1000, help="resamplings of the users (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write all figures to")


def answer(options: argparse.Namespace, play: Callable[[], dict[str, Any]]) -> int:
    """Check the options, play, then print and write the figures; the exit status, 2 where it cannot be done."""
    keep_freed_memory()
    try:
        _check(options)
        figures = play()
        if options.json is not None:
            write_json(options.json, figures)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.width = max(console.width, _COLUMN_WIDTH * (2 + len(figures["policies"])))
    print_figures(figures, console)
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("users", "sessions", "max_requests", "samples"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: found {getattr(options, name)}, expected 1 or more.")
    if not 0 < options.confidence < 1:
        raise ConfigError(f"--confidence: found {options.confidence}, expected a number between 0 and 1.")
    if options.seed < 0:
        raise ConfigError(f"--seed: found {options.seed}, expected 0 or more.")


def _coverage(play: Play, num_items: int, resampling: Resampling) -> tuple[float, np.ndarray]:
    """Share of the catalogue shown to anyone, and its resamplings moved to it."""
    pairs_P = np.unique(play.users_E * num_items + play.items_E)
    users_P, items_P = np.divmod(pairs_P, num_items)
    rng = np.random.default_rng(resampling.seed)
    coverage_X = np.empty(resampling.num_samples)
    for sample in range(resampling.num_samples):
        drawn_U = np.zeros(play.num_users, dtype=bool)
        drawn_U[rng.integers(play.num_users, size=play.num_users)] = True
        coverage_X[sample] = _share_shown(items_P[drawn_U[users_P]], num_items)
    coverage = _share_shown(items_P, num_items)
    return coverage, coverage_X + (coverage - coverage_X.mean())


def _share_shown(items: np.ndarray, num_items: int) -> float:
    shown_N = np.zeros(num_items, dtype=bool)
    shown_N[items] = True
    return float(shown_N.mean())


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _with_margin(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['mean']:.4g} ±{(high - low) / 2:.1g}"


def _interval(bounds: Sequence[float], form: str) -> str:
    return " to ".join(format(bound, form) for bound in bounds)


def _listed(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


if __name__ == "__main__":
    sys.exit(main())
