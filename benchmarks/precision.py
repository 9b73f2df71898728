"""What lower precision costs and saves in decoding: `python -m benchmarks.precision --run runs/NAME`.

    [--preset NAME] [--users N] [--json PATH] [--quick]

Float32 and every precision that the hardware has, each on a trained run with the run's own beams and options. Over its
validation users: `recall@10`, `ndcg@10`, how far both are from float32's, with bootstrapped intervals over the same
users, and `same_as_float32`, the mean share of float32's ten items that the list holds.

With `--preset`, instead, one of the papers' sizes (`python -m onerec.model`) with random weights and a random catalogue
of ten thousand items, 50 beams, histories of full length: what depends on the size alone.

Both tell `block_mebibytes`, of the blocks whose products are multiplied so, `mebibytes` of all that the model holds,
and by the number of requests in a batch `requests_per_s`, its ratio to float32's, and float32's processor time as a
multiple, which other programs on the machine disturb less. A request is timed from items to ten ranked items, encoding
included; the precisions take turns on the same batch, each figure is the best turn after one that is not timed.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.decoding import Sizes, take_turns
from benchmarks.figures import publish
from kernels.float8_products import multiplies_float8
from kernels.memory import keep_freed_memory
from onerec.bundle import build_trie
from onerec.config import RunConfig
from onerec.data.histories import Split
from onerec.data.pathways import History
from onerec.decoding.recommender import OneRecRecommender
from onerec.evaluation.metrics import compare_paired, mean_metrics, metric_names, metric_values, ranks_of_targets
from onerec.evaluation.recommender import requests_before
from onerec.model.onerec import OneRec
from onerec.model.precision import Precision, choose_precision
from onerec.model.presets import CODES_PER_LEVEL, PRESETS
from onerec.pipeline import Pipeline
from tokenizer.settings import load_settings
from tokenizer.table import SemanticIdTable

LIST_LENGTH = 10
PRESET_ITEMS, PRESET_BEAMS = 10_000, 50
FULL_USERS, QUICK_USERS = 2000, 100
FULL = Sizes(max_requests=16, max_rows=0, num_turns=8, num_generate_turns=0)
QUICK = Sizes(max_requests=4, max_rows=0, num_turns=3, num_generate_turns=0)
_SHOWN = ("recall@10", "ndcg@10")
_BOOTSTRAP_SAMPLES = 1000

Recommenders = dict[Precision, OneRecRecommender]


@dataclass(frozen=True)
class Requests:
    """Histories, the items that came next, and whose they are."""

    histories: list[History]
    targets_R: np.ndarray
    users_R: np.ndarray


def precisions(device: torch.device) -> list[Precision]:
    """Those that the device multiplies, float32 first."""
    found: list[Precision] = ["float32", "int8"]
    if choose_precision("auto") == "bfloat16":
        found.insert(1, "bfloat16")
    return [*found, "float8"] if multiplies_float8(device) else found


def measure_run(pipeline: Pipeline, num_users: int, sizes: Sizes) -> dict[str, Any]:
    """Lists and costs of a trained run."""
    own = pipeline.recommender(pipeline.model)
    recommenders: Recommenders = {
        precision: own.remade(pipeline.model, own.trie, precision) for precision in precisions(pipeline.model.device)
    }
    requests = sample_requests(pipeline, own, num_users)
    figures = compare_lists(recommenders, requests)
    for precision, costs in measure_costs(recommenders, requests.histories, sizes).items():
        figures[precision] |= costs
    return {"requests": len(requests.histories), "beams": own.num_beams, **figures}


def sample_requests(pipeline: Pipeline, recommender: OneRecRecommender, num_users: int) -> Requests:
    """What came before the validation targets of a seeded sample of users."""
    histories = pipeline.data.histories
    rows = np.random.default_rng(0).permutation(histories.targets(Split.VALIDATION))[:num_users]
    befores = requests_before(recommender, histories, rows)
    return Requests(befores, np.asarray(histories.items)[rows], histories.users_of(rows))


def compare_lists(recommenders: Recommenders, requests: Requests) -> dict[str, Any]:
    """Metrics of each precision's lists, and how they differ from float32's."""
    lists = {
        precision: recommender.recommend(requests.histories, LIST_LENGTH, exclude_seen=False).items_BK
        for precision, recommender in tqdm(recommenders.items(), desc="recommend", unit="precision")
    }
    exact_RK, ks = lists["float32"], (LIST_LENGTH,)
    names = metric_names(ks)
    exact_RM = metric_values(ranks_of_targets(exact_RK, requests.targets_R), ks)
    figures: dict[str, Any] = {}
    for precision, items_RK in lists.items():
        ranks_R = ranks_of_targets(items_RK, requests.targets_R)
        values_RM = metric_values(ranks_R, ks)
        differences = compare_paired(values_RM, exact_RM, requests.users_R, _BOOTSTRAP_SAMPLES, confidence=0.95, seed=0)
        by_name = dict(zip(names, differences, strict=True))
        means = mean_metrics(ranks_R, ks)
        shared_R = (exact_RK[:, :, None] == items_RK[:, None, :]).any(axis=2).mean(axis=1)
        figures[precision] = {
            **{name: _rounded(means[name]) for name in _SHOWN},
            **{f"{name}_difference": _rounded(by_name[name].difference) for name in _SHOWN},
            **{
                f"{name}_interval": [_rounded(by_name[name].interval.low), _rounded(by_name[name].interval.high)]
                for name in _SHOWN
            },
            "same_as_float32": _rounded(float(shared_R.mean())),
        }
    return figures


def measure_preset(name: str, sizes: Sizes) -> dict[str, Any]:
    """Costs of a paper's size."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    config = PRESETS[name].configuration(PRESET_ITEMS)
    codes_NL = random.integers(CODES_PER_LEVEL, size=(PRESET_ITEMS, len(CODES_PER_LEVEL)), dtype=np.int32)
    table = SemanticIdTable.of_unique(codes_NL, CODES_PER_LEVEL, map(str, range(PRESET_ITEMS)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = OneRec(config).eval().to(device)
    model.set_codes(table.codes_NL, table.content_hash)
    trie = build_trie(table)
    recommenders: Recommenders = {
        precision: OneRecRecommender(model, trie, PRESET_BEAMS, precision) for precision in precisions(device)
    }
    histories = list(random.integers(PRESET_ITEMS, size=(sizes.max_requests, config.max_history_items)))
    costs = {str(precision): figures for precision, figures in measure_costs(recommenders, histories, sizes).items()}
    return {"preset": name, "positions": config.max_history_items + 1, "beams": PRESET_BEAMS, **costs}


def measure_costs(
    recommenders: Recommenders, histories: Sequence[History], sizes: Sizes
) -> dict[Precision, dict[str, Any]]:
    """Memory, and speed for one request and for a batch."""
    costs: dict[Precision, dict[str, Any]] = {}
    for precision, recommender in recommenders.items():
        model = recommender.model
        costs[precision] = {
            "block_mebibytes": _mebibytes(*model.stacks()),
            "mebibytes": _mebibytes(model),
            "requests_per_s": {},
            "ratio_vs_float32": {},
            "cpu_ratio_vs_float32": {},
        }
    for num_requests in (1, sizes.max_requests):
        batch = histories[:num_requests]
        programs: dict[str, Callable[[], object]] = {
            str(precision): partial(recommender.recommend, batch, LIST_LENGTH, exclude_seen=False)
            for precision, recommender in recommenders.items()
        }
        for program in programs.values():
            program()
        best_s, best_cpu_s = take_turns(programs, sizes)
        for precision, figures in costs.items():
            key = str(num_requests)
            figures["requests_per_s"][key] = _rounded(num_requests / best_s[precision])
            figures["ratio_vs_float32"][key] = _rounded(best_s["float32"] / best_s[precision])
            figures["cpu_ratio_vs_float32"][key] = _rounded(best_cpu_s["float32"] / best_cpu_s[precision])
    return costs


def _mebibytes(*modules: torch.nn.Module) -> float:
    tensors = [tensor for module in modules for tensor in itertools.chain(module.parameters(), module.buffers())]
    return _rounded(sum(tensor.nbytes for tensor in tensors) / 2**20)


def _rounded(figure: float) -> float:
    return float(f"{figure:.4g}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--run", type=Path, help="folder of a pre-trained run")
    measured.add_argument("--preset", choices=PRESETS, help="a paper's size with random weights: its costs alone")
    parser.add_argument("--users", type=int, help=f"users of a run (default: {FULL_USERS}, quick: {QUICK_USERS})")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer users, smaller batches, fewer turns")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_flush_denormal(True)
    sizes = QUICK if arguments.quick else FULL
    if arguments.preset is not None:
        figures = measure_preset(arguments.preset, sizes)
    else:
        config = load_settings(RunConfig, arguments.run / "config.yaml", [])
        num_users = arguments.users or (QUICK_USERS if arguments.quick else FULL_USERS)
        figures = measure_run(Pipeline.open(config, arguments.run.parent), num_users, sizes)
    publish(figures | {"threads": torch.get_num_threads()}, arguments.json)


if __name__ == "__main__":
    main()
