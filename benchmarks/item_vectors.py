"""Item vectors and what codes of them are worth: plain text against behaviour-aware, RQ-KMeans against RQ-VAE.

python -m benchmarks.item_vectors --data amazon14_beauty [--json PATH] [--quick] [--recall] [--set SECTION.KEY=VALUE]

The table of OneRec's technical report (arXiv 2506.13695, tokenizer), on a folder of the benchmark form: reconstruction
error, use of each level's codes and their entropy, with the report's own figures beside. Its figures are of other
vectors and 8192 codes a level, so that only their order compares: error of one quantizer against the other, entropy
against its maximum, log of the codes. Errors are mean squared lengths, `relative` to the vectors' variance.

`same code` needs no model: the share of users whose validation item begins with the same code, or two codes, as their
last training item, beside the share of random pairs of the same items. It is of codes as fitted, before collisions are
handled. `--recall` trains and evaluates the recipe once for each kind of vectors and prints Recall and NDCG at 10 of
the test split, seen items allowed; runs lie in runs/ and go on where they were stopped.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from benchmarks.figures import publish
from onerec.config import RunConfig
from onerec.data.histories import Histories, Split
from onerec.data.prepared import PreparedData, prepare
from onerec.data.sources.folder import find_folder
from onerec.pipeline import Pipeline
from tokenizer.artifacts import atomic_folder
from tokenizer.config import TokenizerSettings
from tokenizer.fit import count_unknown, fit_sources
from tokenizer.fusion import Fusion
from tokenizer.quantizers import fit_quantizer
from tokenizer.report import Report, describe
from tokenizer.sequences import Sequences
from tokenizer.settings import load_settings

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "recipe.yaml"
# Kind of vectors -> weights of the sources. The third is the recipe's own.
WEIGHTS = {
    "text": {"text": 1.0, "collaborative": 0.0, "behaviour": 0.0},
    "behaviour": {"text": 0.0, "collaborative": 0.0, "behaviour": 1.0},
    "text-collaborative": {"text": 0.3, "collaborative": 0.7, "behaviour": 0.0},
    "behaviour-collaborative": {"text": 0.0, "collaborative": 0.7, "behaviour": 0.3},
}
QUANTIZERS = ("rq_kmeans", "rq_vae")
REPORT_CODES = 8192
# Technical report: reconstruction loss, use and entropy (nats) of the three levels.
PUBLISHED: dict[str, dict[str, Any]] = {
    "rq_kmeans": {"error": 0.0410, "use": [1.0, 1.0, 1.0], "entropy": [8.9191, 8.7770, 8.7276]},
    "rq_vae": {"error": 0.0548, "use": [1.0, 0.9963, 0.9958], "entropy": [8.3892, 8.4805, 8.6037]},
}
QUICK_USERS = 200
QUICK = (
    "tokenizer.quantizer.codes_per_level=[32,32,32]",
    "tokenizer.quantizer.rq_vae.epochs=20",
    "tokenizer.behaviour.training={steps: 30, batch_size: 64, caption_items: 16}",
    "model.d_model=32",
    "training.epochs=1",
    "training.evaluate_every_epochs=1",
    "decoding.num_beams=10",
    "evaluation.ks=[10]",
)
NO_BASELINES = ("baselines={popularity: false, item_knn: null, sasrec: null, sasrec_sampled: null, tiger: null}",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables."""
    arguments = _parser().parse_args(argv)
    overrides = [*(QUICK if arguments.quick else ()), *arguments.set]
    num_users = arguments.users or (QUICK_USERS if arguments.quick else None)
    console = Console(width=180)
    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.data
        if num_users is not None:
            # A run knows its data by the path, so that one to go on with needs a folder that stays.
            place = arguments.runs if arguments.recall else Path(temporary)
            path = first_users(find_folder(path), place / f"{path.name}-first-{num_users}", num_users)
        overrides.append(f"data.path={path}")
        data = prepare(load_settings(RunConfig, RECIPE, overrides).data, Path(temporary) / "prepared")
        rows: dict[str, dict[str, Any]] = {}
        for vectors in arguments.vectors:
            settings = settings_of(vectors, overrides).tokenizer
            rows |= {f"{vectors}, {row['quantizer']}": row for row in measure(data, settings, arguments.quantizers)}
        console.print(codes_table(rows))
        figures: dict[str, Any] = {"data": path.name, "users": data.num_users, "items": data.num_items, **rows}
        if arguments.recall:
            recall = {kind: train(kind, overrides, arguments.runs, console) for kind in arguments.vectors}
            console.print(recall_table(recall))
            figures["recall"] = recall
    publish({**figures, "published": PUBLISHED}, arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.item_vectors", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("amazon14_beauty"), help="folder, or a name in $ONEREC_DATA")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_USERS} users, small codebooks and model")
    parser.add_argument("--users", type=int, help="the first so many users and the items they met")
    parser.add_argument("--vectors", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS), help="kinds of vectors")
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--recall", action="store_true", help="train and evaluate the recipe for each kind of vectors")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs that --recall trains")
    return parser


def first_users(source: Path, target: Path, num_users: int) -> Path:
    """Make `target`, unless it is there: the first users and the items they met, renumbered; returns it."""
    if target.exists():
        return target
    events = pl.read_parquet(source / "interactions.parquet").filter(pl.col("user") < num_users)
    met = events["item"].unique().sort()
    new_number = pl.DataFrame({"item": met, "row": pl.int_range(len(met), dtype=pl.Int32, eager=True)})
    renumbered = events.join(new_number, on="item", maintain_order="left").drop("item").rename({"row": "item"})
    items = pl.read_parquet(source / "items.parquet")[met.to_list()]
    with atomic_folder(target) as temporary:
        renumbered.write_parquet(temporary / "interactions.parquet")
        items.with_columns(pl.int_range(len(met), dtype=pl.Int32).alias("item")).write_parquet(
            temporary / "items.parquet"
        )
    return target


def settings_of(vectors: str, overrides: Sequence[str]) -> RunConfig:
    """The recipe on one kind of vectors."""
    weights = [f"tokenizer.{source}.weight={weight}" for source, weight in WEIGHTS[vectors].items()]
    return load_settings(RunConfig, RECIPE, [*overrides, *weights])


def measure(data: PreparedData, settings: TokenizerSettings, quantizers: Sequence[str]) -> list[dict[str, Any]]:
    """One row of the table for each quantizer, all on the same vectors."""
    training = data.histories.training()
    sequences = Sequences(training.offsets, training.items)
    started, cpu_started = time.perf_counter(), time.process_time()
    sources, _, front = fit_sources(data.items, sequences, settings, data.schema.text_columns)
    vectors_ND = Fusion.fit(sources, settings.fusion).transform(sources)
    common: dict[str, Any] = {
        "vector_seconds": time.perf_counter() - started,
        "vector_cpu_seconds": time.process_time() - cpu_started,
        "front": None if front is None else front.model_dump(),
    }
    rows = []
    for kind in quantizers:
        chosen = settings.quantizer.model_copy(update={"kind": kind})
        started = time.process_time()
        quantizer, codes_NL = fit_quantizer(vectors_ND, chosen, settings.seed)
        seconds = time.process_time() - started
        report = describe(codes_NL, quantizer, vectors_ND, settings, count_unknown(sources))
        agreement = next_item_agreement(codes_NL, data.histories, settings.seed)
        rows.append({**row_of(report), **agreement, **common, "quantizer_cpu_seconds": seconds})
    return rows


def row_of(report: Report) -> dict[str, Any]:
    """What the table shows of a tokenizer's report."""
    return {
        "quantizer": report.quantizer,
        "error": report.reconstruction_error,
        "relative_error": report.relative_error,
        "use": [level.use_share for level in report.levels],
        "entropy": [level.entropy_nats for level in report.levels],
        "entropy_share": [level.entropy_nats / math.log(level.num_codes) for level in report.levels],
        "collision_share": report.before.collision_share,
        "neighbours": report.neighbours.by_prefix,
    }


def next_item_agreement(codes_NL: np.ndarray, histories: Histories, seed: int) -> dict[str, Any]:
    """Share of users whose validation item shares the first 1..L codes with their last training item; and by chance."""
    splits = np.asarray(histories.splits)
    is_next = np.zeros(len(splits), dtype=bool)
    is_next[1:] = (splits[1:] == Split.VALIDATION) & (splits[:-1] == Split.TRAIN)
    is_next[np.asarray(histories.offsets[:-1])[histories.offsets[:-1] < len(splits)]] = False  # another user's before
    rows = np.flatnonzero(is_next)
    last_U, next_U = histories.items[rows - 1], histories.items[rows]
    strangers_U = np.random.default_rng(seed).permutation(next_U)
    shares = {
        name: np.logical_and.accumulate(codes_NL[last_U] == codes_NL[other_U], axis=1).mean(axis=0).tolist()
        for name, other_U in (("same_codes", next_U), ("same_codes_by_chance", strangers_U))
    }
    return {**shares, "users_compared": len(rows)}


def train(vectors: str, overrides: Sequence[str], runs: Path, console: Console) -> dict[str, float]:
    """Train and evaluate the recipe on one kind of vectors; its test metrics at 10, and minutes of training."""
    settings = settings_of(vectors, [*overrides, *NO_BASELINES])
    assert settings.data.path is not None
    config = settings.model_copy(update={"name": f"item-vectors-{settings.data.path.name}-{vectors}"})
    pipeline = Pipeline.open(config, runs, console)
    for stage in ("data", "tokenizer", "pretrain", "evaluate"):
        pipeline.run(stage)
    results = pipeline.results()
    onerec = results.test["onerec"]
    means = {name: onerec.metrics[name].mean for name in ("recall@10", "ndcg@10")}
    return {**means, "validation_recall@10": results.validation["onerec"].metrics["recall@10"].mean} | {
        "minutes": onerec.minutes
    }


def codes_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Rows as measured, then the report's."""
    table = Table(title="Codes of item vectors")
    for name in ("vectors, quantizer", "error", "relative", "use of levels", "entropy, nats", "of maximum"):
        table.add_column(name)
    for name in ("colliding", "same code", "by chance", "same two", "by chance"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        same, chance = row["same_codes"], row["same_codes_by_chance"]
        prefixes = [f"{share:.2%}" for pair in list(zip(same, chance, strict=True))[:2] for share in pair]
        table.add_row(
            name,
            f"{row['error']:.4f}",
            f"{row['relative_error']:.4f}",
            *(_levels(row[key], places) for key, places in (("use", 3), ("entropy", 3), ("entropy_share", 3))),
            f"{row['collision_share']:.1%}",
            *prefixes,
        )
    table.add_section()
    for kind, figures in PUBLISHED.items():
        shares = [entropy / math.log(REPORT_CODES) for entropy in figures["entropy"]]
        levels = (_levels(values, 3) for values in (figures["use"], figures["entropy"], shares))
        table.add_row(f"OneRec report, {kind}", f"{figures['error']:.4f}", "", *levels)
    return table


def recall_table(recall: Mapping[str, Mapping[str, float]]) -> Table:
    """Test metrics of the recipe by kind of vectors."""
    table = Table(title="The recipe trained on codes of each kind of vectors, test")
    table.add_column("vectors")
    for name in next(iter(recall.values())):
        table.add_column(name, justify="right")
    for kind, metrics in recall.items():
        table.add_row(kind, *(f"{value:.4f}" for value in metrics.values()))
    return table


def _levels(values: Sequence[float], places: int) -> str:
    return " ".join(f"{value:.{places}f}" for value in values)


if __name__ == "__main__":
    raise SystemExit(main())
