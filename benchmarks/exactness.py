"""How often beam search equals exact search, on a trained run:
`python -m benchmarks.exactness --run runs/NAME [--json PATH] [--quick]`.

For each width, over the validation users' histories of a run: `equal_share` is the share of requests whose list of ten
items is the provably best one, item for item; `recall_of_exact` the mean share of the exact ten that the beam found;
`recall@10` the share that holds the item which came next (of the exact lists: beside `expansions`, the mean number of
prefixes that the exact search read for a request). Where the hardware multiplies bfloat16, beams in that are compared
with the same float32 truth.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.bundle import build_trie
from onerec.config import RunConfig
from onerec.data.histories import Histories, Split
from onerec.decoding.recommender import OneRecRecommender
from onerec.model.precision import Precision, choose_precision
from onerec.pipeline import Pipeline
from tokenizer.settings import load_settings

WIDTHS = (10, 50, 128)
LIST_LENGTH = 10
FULL_USERS, QUICK_USERS = 2000, 100
_BATCH_REQUESTS = 16


@dataclass(frozen=True)
class Requests:
    """Histories and the items that came next."""

    histories: list[np.ndarray]
    targets_R: np.ndarray


def measure(pipeline: Pipeline, num_users: int) -> dict[str, Any]:
    """All widths in every precision that the hardware multiplies."""
    requests = sample_requests(pipeline.data.histories, num_users)
    model, trie = pipeline.model, build_trie(pipeline.table)
    exact_RK, expansions_R = search_exactly(OneRecRecommender(model, trie, max(WIDTHS)), requests.histories)
    precisions: set[Precision] = {"float32", choose_precision("auto")}
    figures: dict[str, Any] = {
        "requests": len(requests.histories),
        "expansions": float(expansions_R.mean()),
        "recall@10": hit_share(exact_RK, requests.targets_R),
    }
    for precision in sorted(precisions):
        recommender = OneRecRecommender(model, trie, max(WIDTHS), precision)
        figures[precision] = compare(recommender, requests, exact_RK)
    return figures


def sample_requests(histories: Histories, num_users: int) -> Requests:
    """What came before the validation targets of a seeded sample of users."""
    rows = np.random.default_rng(0).permutation(histories.targets(Split.VALIDATION))[:num_users]
    return Requests([histories.before(row) for row in rows.tolist()], np.asarray(histories.items)[rows])


def hit_share(items_RK: np.ndarray, targets_R: np.ndarray) -> float:
    """Recall: share of lists that hold their target."""
    return float((items_RK == targets_R[:, None]).any(axis=1).mean())


def search_exactly(recommender: OneRecRecommender, histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The best items (R, 10) of every history, and the prefixes read for it (R,)."""
    items, expansions = [], []
    for first in tqdm(range(0, len(histories), _BATCH_REQUESTS), desc="exact search", unit="batch"):
        context = recommender.encode(histories[first : first + _BATCH_REQUESTS])
        ranking, expansions_B = recommender.search_exactly(context, LIST_LENGTH)
        items.append(ranking.items_BK)
        expansions.append(expansions_B)
    return np.concatenate(items), np.concatenate(expansions)


def compare(recommender: OneRecRecommender, requests: Requests, exact_RK: np.ndarray) -> dict[str, dict[str, float]]:
    """Equality and overlap of the beams' lists with the exact ones, and their Recall, at each width."""
    figures: dict[str, dict[str, float]] = {"equal_share": {}, "recall_of_exact": {}, "recall@10": {}}
    for width in tqdm(WIDTHS, desc=f"beams in {recommender.precision}", unit="width"):
        lists = []
        for first in range(0, len(requests.histories), _BATCH_REQUESTS):
            context = recommender.encode(requests.histories[first : first + _BATCH_REQUESTS])
            lists.append(recommender.search(context, LIST_LENGTH, num_beams=width).items_BK)
        found_RK = np.concatenate(lists)
        shared_R = (found_RK[:, :, None] == exact_RK[:, None, :]).any(axis=2).mean(axis=1)
        figures["equal_share"][str(width)] = float((found_RK == exact_RK).all(axis=1).mean())
        figures["recall_of_exact"][str(width)] = float(shared_R.mean())
        figures["recall@10"][str(width)] = hit_share(found_RK, requests.targets_R)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a pre-trained run")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_USERS} users instead of {FULL_USERS}")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    config = load_settings(RunConfig, arguments.run / "config.yaml", [])
    pipeline = Pipeline.open(config, arguments.run.parent)
    publish(measure(pipeline, QUICK_USERS if arguments.quick else FULL_USERS), arguments.json)


if __name__ == "__main__":
    main()
