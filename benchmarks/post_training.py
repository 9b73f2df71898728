"""What each way of post-training does: `python -m benchmarks.post_training [--json PATH] [--quick] [--seeds 0 1 2]`.

In the synthetic world of configs/world.yaml a model and a reward model are trained for every seed, and every row aligns
a copy of that model: RSFT alone, then each objective beside it; `+ rounds` is OneRec v1's DPO, on 128 beams of a worker
that is sent the weights once a round, when the reference becomes the policy; `+ selection` puts the beams in order by
the reward model, `+ format` adds the format reward, `+ legality` the share of the legal codes
(`align.legality_weight`). Simulated users then play against all of them with the same luck (`rl.ab`). Half of the users
are for choosing settings (`--users validation`), the other half for the table.

- `watch_time`       true expected seconds a place of a slate
- `gap_closed`       of the pre-trained model's gap to the oracle, with its interval: users are resampled, each with the
                     mean of his figures over the seeds; `by_seed` are the seeds' own
- `coverage_ratio`   share of the catalogue that was shown, over the pre-trained model's
- `legality`         share of samples without the trie that are items of the catalogue
- `recall@10`, `ndcg@10`  of held-out test items, seen ones excluded as in the play

It can be stopped at any moment: the same command goes on with the row and the step where it was. `--only ROW` makes
some rows, `--set align.KEY=VALUE` changes settings of all of them (in other folders: `--runs`).

Shapes: U users, M metrics, S seeds.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.data.histories import Split
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.sampling import sample_items
from onerec.decoding.selection import Selector
from onerec.evaluation.evaluator import evaluate
from onerec.evaluation.recommender import requests_before
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from rl.ab import USER_METRICS, Measured, Resampling, gap_closed, measure
from rl.arena import Arena, recommender_player
from rl.preference.stage import train_reward
from rl.settings import AlignedRunConfig
from rl.stage import align
from tokenizer.artifacts import hash_text, read_manifest, write_json
from tokenizer.settings import load_settings

CONFIG = Path(__file__).parent.parent / "configs" / "world.yaml"
PRETRAINED, CEILING, SELECTION = "pretrained", "oracle", " + selection"
RSFT = ("align.objective.weight=0",)
ECPO, DPO = ("align.objective.kind=ecpo",), ("align.objective.kind=dpo",)
# Row -> what it changes in the config's align section; those with ` + selection` play the row's model before it.
ROWS: dict[str, tuple[str, ...] | None] = {
    PRETRAINED: None,
    "rsft": RSFT,
    "dpo": DPO,
    "dpo + rounds": (
        *DPO,
        "align.rollout.kind=beam",
        "align.rollout.group_size=128",
        "align.rollout.workers=1",
        "align.rollout.sync_every=20",
        "align.objective.reference_every_steps=20",
        "align.objective.reference_mixture=1",
        "align.monitor.every_steps=20",
    ),
    "grpo": ("align.objective.kind=grpo",),
    "ecpo": ECPO,
    "gbpo": ("align.objective.kind=gbpo",),
    "ecpo" + SELECTION: ECPO,
    "ecpo + format": (*ECPO, "align.format={group_size: 32, chosen: 5}"),
    "ecpo + legality": (*ECPO, "align.legality_weight=1"),
}
_COPIED = ("data", "tokenizer", "pretrain", "reward")
_LEGALITY_REQUESTS, _LEGALITY_SAMPLES = 256, 32
_METRICS = ("recall@10", "ndcg@10")


@dataclass(frozen=True)
class Scale:
    """Overrides of the config, and how long the users play."""

    overrides: tuple[str, ...]
    num_sessions: int
    max_requests: int


FULL = Scale((), num_sessions=3, max_requests=10)
QUICK = Scale(
    (
        "data.world={num_users: 160, num_items: 100, num_events: 8000}",
        "tokenizer.quantizer.codes_per_level=[16, 16]",
        "model.d_model=32",
        "training.epochs=2",
        "training.evaluate_every_epochs=2",
        "decoding.num_beams=20",
        "evaluation={ks: [1, 10], bootstrap_samples: 2}",
        "reward.epochs=2",
        "align.steps=6",
        "align.prompts_per_step=32",
        "align.monitor={every_steps: 6, max_metric_drop: 1, min_coverage_ratio: 0}",
    ),
    num_sessions=1,
    max_requests=2,
)


@dataclass(frozen=True)
class Benchmark:
    """Where runs lie, what changes them, and who plays how long."""

    runs: Path
    scale: Scale
    overrides: tuple[str, ...]
    users: str  # validation or final

    def row(self, name: str, seed: int) -> dict[str, Any]:
        """One row with one seed: made if it is not there yet."""
        base = self._pretrained(seed)
        changes = ROWS[name]
        model = base if changes is None else self._aligned(base, name.removesuffix(SELECTION), changes, seed)
        return self._measured(model, "pretrain" if changes is None else "align", name.endswith(SELECTION))

    def ceiling(self, seed: int) -> Measured:
        """The oracle's play."""
        pipeline = self._pretrained(seed)
        return self._play(Arena.open(pipeline.folder), None)

    def _config(self, name: str, seed: int, changes: Sequence[str] = ()) -> AlignedRunConfig:
        named = (f"name={name}", f"seed={seed}")
        return load_settings(AlignedRunConfig, CONFIG, [*self.scale.overrides, *self.overrides, *changes, *named])

    def _pretrained(self, seed: int) -> Pipeline:
        config = self._config(f"seed-{seed}", seed)
        pipeline = Pipeline.open(config.run_config(), self.runs, Console(quiet=True))
        for stage in ("data", "tokenizer", "pretrain"):
            pipeline.run(stage)
        train_reward(pipeline, config.reward)
        return pipeline

    def _aligned(self, base: Pipeline, row: str, changes: tuple[str, ...], seed: int) -> Pipeline:
        config = self._config(f"seed-{seed}-{row.replace(' + ', '-')}", seed, changes)
        pipeline = Pipeline.open(config.run_config(), self.runs, Console(quiet=True))
        for part in _COPIED:
            if not (pipeline.folder / part).exists():
                shutil.copytree(base.folder / part, pipeline.folder / part, copy_function=os.link)
        align(pipeline, config.align)
        return pipeline

    def _measured(self, pipeline: Pipeline, artefact: str, select: bool) -> dict[str, Any]:
        """Figures of a trained model, kept beside it for as long as the model and the play are the same."""
        folder = pipeline.folder / artefact
        made = read_manifest(folder, artefact).content_hash
        asked = [made, self.users, self.scale.num_sessions, self.scale.max_requests, select]
        stored = pipeline.folder / f"played-{hash_text(json.dumps(asked))[:12]}.json"
        if stored.is_file():
            return dict(json.loads(stored.read_text(encoding="utf-8")))
        model: OneRec = OneRec.from_pretrained(folder).eval()
        recommender = pipeline.recommender(model)
        selector = Selector.load(pipeline.folder / "reward", pipeline.table) if select else None
        played = self._play(Arena.open(pipeline.folder), recommender, selector)
        figures = {**_as_json(played), "legality": legality(recommender, pipeline), **held_out(recommender, pipeline)}
        write_json(stored, figures)
        return figures

    def _play(self, arena: Arena, recommender: OneRecRecommender | None, selector: Selector | None = None) -> Measured:
        order = np.random.default_rng(0).permutation(arena.data.num_users)
        half = len(order) // 2
        rows = np.sort(order[:half] if self.users == "validation" else order[half:])
        simulation = arena.simulation_of(rows, self.scale.num_sessions, self.scale.max_requests)
        player = arena.oracle() if recommender is None else recommender_player(recommender, selector)
        return measure(simulation.play(player), arena.item_counts(), _resampling())


def legality(recommender: OneRecRecommender, pipeline: Pipeline) -> float:
    """Share of unconstrained samples after the test users' histories that are items."""
    histories = pipeline.data.histories
    requests = requests_before(recommender, histories, histories.targets(Split.TEST)[:_LEGALITY_REQUESTS])
    generator = torch.Generator(recommender.model.device).manual_seed(0)
    with torch.inference_mode():
        context = recommender.encode(requests)
        drawn = sample_items(
            recommender.model, context, recommender.trie, _LEGALITY_SAMPLES, generator, constrained=False
        )
    return float((drawn.items_BG >= 0).double().mean())


def held_out(recommender: OneRecRecommender, pipeline: Pipeline) -> dict[str, float]:
    """Metrics of the test items, seen ones excluded."""
    settings = pipeline.config.evaluation.model_copy(update={"protocols": ("seen_excluded",), "bootstrap_samples": 1})
    found = evaluate(recommender, pipeline.data, Split.TEST, settings, show_progress=False)
    (evaluation,) = found.values()
    return {name: evaluation.metrics[name] for name in _METRICS}


def summarize(rows_S: dict[str, list[dict[str, Any]]], ceilings_S: list[Measured]) -> dict[str, Any]:
    """Each row's figures over the seeds, against the pre-trained rows of the same seeds."""
    resampling = _resampling()
    played = {name: [_from_json(figures) for figures in seeds] for name, seeds in rows_S.items()}
    first_S, ceiling = played[PRETRAINED], _mean(ceilings_S)
    first = _mean(first_S)
    methods: dict[str, Any] = {}
    for name, seeds in rows_S.items():
        other = _mean(played[name])
        shares = gap_closed(other, first, ceiling, resampling)["true_watch_seconds"]
        by_seed = [
            gap_closed(one, before, top, resampling)["true_watch_seconds"]
            for one, before, top in zip(played[name], first_S, ceilings_S, strict=True)
        ]
        methods[name] = {
            "watch_time": _watch_time(other),
            "gap_closed": None if shares is None else shares["share"],
            "interval": None if shares is None else shares["interval"],
            "by_seed": [None if share is None else share["share"] for share in by_seed],
            "coverage_ratio": other.coverage / first.coverage,
            **{key: float(np.mean([figures[key] for figures in seeds])) for key in ("legality", *_METRICS)},
        }
    methods[CEILING] = {"watch_time": _watch_time(ceiling), "coverage_ratio": ceiling.coverage / first.coverage}
    return methods


def print_table(methods: dict[str, Any], console: Console) -> None:
    """The rows, one under the other."""
    columns = ("watch_time", "gap_closed", "interval", "by_seed", "coverage_ratio", "legality", *_METRICS)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    forms = {"watch_time": ".2f", "gap_closed": ".1%", "interval": ".1%", "by_seed": ".1%", "coverage_ratio": ".3f"}
    for name, figures in methods.items():
        table.add_row(name, *(_shown(figures.get(column), forms.get(column, ".4f")) for column in columns))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing of the table, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.post_training",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--quick", action="store_true", help="a tiny world and few steps: seconds a row, no finding")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="of all training (default: 0 1 2)")
    parser.add_argument("--only", action="append", choices=list(ROWS), help="make this row (default: all)")
    parser.add_argument("--users", choices=("validation", "final"), default="final", help="who plays")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/post_training)")
    options = parser.parse_args(argv)
    keep_freed_memory()
    scale = QUICK if options.quick else FULL
    runs = options.runs or Path("runs") / ("post_training_quick" if options.quick else "post_training")
    benchmark = Benchmark(runs, scale, tuple(options.overrides), options.users)
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    names = list(dict.fromkeys([PRETRAINED, *(options.only or ROWS)]))
    rows_S: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            rows_S[name].append(benchmark.row(name, seed))
    methods = summarize(rows_S, [benchmark.ceiling(seed) for seed in seeds])
    publish({"seeds": seeds, "users": options.users, "overrides": options.overrides, "methods": methods}, options.json)
    console = Console()
    console.width = max(console.width, 160)
    print_table(methods, console)


def _resampling() -> Resampling:
    return Resampling(num_samples=1000, confidence=0.95, seed=0)


def _as_json(measured: Measured) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(measured).items()}


def _from_json(figures: dict[str, Any]) -> Measured:
    return Measured(np.array(figures["values_UM"]), figures["coverage"], np.array(figures["coverage_X"]))


def _mean(measured_S: Sequence[Measured]) -> Measured:
    """Each user's mean over the seeds."""
    values_UM = np.mean([measured.values_UM for measured in measured_S], axis=0)
    coverage_X = np.mean([measured.coverage_X for measured in measured_S], axis=0)
    return Measured(values_UM, float(np.mean([measured.coverage for measured in measured_S])), coverage_X)


def _watch_time(measured: Measured) -> float:
    return float(measured.values_UM[:, USER_METRICS.index("true_watch_seconds")].mean())


def _shown(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(_shown(part, form) for part in value)
    return format(value, form)


if __name__ == "__main__":
    main()
