"""Cost of the catalogue's tree from 10^4 to 10^7 items: `python -m benchmarks.trie [--json PATH] [--quick]`.

Catalogues of random distinct IDs of three levels of 2048 codes; random IDs share the fewest prefixes, so that memory is
what it is at worst. The same random logits go to our step (`best_continuations`) and to the method of STATIC
(arXiv 2602.22647, `benchmarks/static_csr.py`), both from log-softmax to the next beams; they must find the same items.
Each takes turns with the other; a figure is the best turn's processor time, which others who use the machine disturb
less.

One entry a catalogue size:
- `step_ms`: a step of a batch of 16 requests at 50 beams, the mean of its three levels; `flatness` is the largest over
  the least. `csr_step_ms`: that of STATIC; `ratio_vs_csr` is theirs over ours. `single_…`: of one request alone, where
  both spend their time on starting PyTorch's operations.
- `build_s` and `bytes_per_item`, from an ID table that is in memory; `csr_bytes_per_item` without the list of items.
- `update_ms`: one item joins, one leaves and one comes back, each in a tree that 1,000 joined and 1,000 left before;
  `bulk_update_ms`: those 2,000 at once; `changed_step_ms`: a step in that tree.
- `exclusion_ms`: the sets of dead nodes for 32 requests that exclude 100 items each.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import publish
from benchmarks.static_csr import StaticIndex
from kernels.memory import keep_freed_memory
from onerec.decoding.continuations import best_continuations
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie

NUM_CODES, NUM_LEVELS, NUM_BEAMS = 2048, 3, 50
FULL_SIZES, QUICK_SIZES = (10**4, 10**5, 10**6, 10**7), (10**4, 10**5, 10**6)
NUM_REQUESTS, NUM_CHANGES = 16, 1000


def make_codes(num_items: int, num_codes: int = NUM_CODES) -> np.ndarray:
    """Random distinct IDs in random order (N, L)."""
    generator = np.random.default_rng(0)
    flat = np.unique(generator.integers(num_codes**NUM_LEVELS, size=num_items + num_items // 100 + 10))
    flat_N = generator.permutation(flat)[:num_items]
    return np.stack(np.unravel_index(flat_N, (num_codes,) * NUM_LEVELS), axis=1).astype(np.int32)


def make_logits(num_requests: int, num_codes: int) -> list[Tensor]:
    """One tensor (B, W, K) a level."""
    torch.manual_seed(0)
    return [torch.randn(num_requests, 1 if level == 0 else NUM_BEAMS, num_codes) for level in range(NUM_LEVELS)]


def search(trie: Trie, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Items and scores of the beams, logits given by place."""
    shape = len(logits[0]), 1
    nodes, scores = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    alive = torch.ones(shape, dtype=torch.bool)
    for level, logits_BWK in enumerate(logits):
        best = best_continuations(trie, level, nodes, alive, scores, logits_BWK, NUM_BEAMS, normalise=True)
        nodes, alive, scores = best.nodes_BV, best.alive_BV, best.scores_BV
    return trie.items_of(nodes), scores


def search_static(index: StaticIndex, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The same by the rival."""
    shape = len(logits[0]), 1
    states, scores = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    for level, logits_BWK in enumerate(logits):
        states, scores = index.advance(level, states, scores, logits_BWK, NUM_BEAMS)
    return index.item_of_state[states], scores


def order_ties(items: Tensor, scores: Tensor) -> Tensor:
    """Items (B, W) from the highest score down, of equal scores by index: STATIC's method leaves their order open."""
    by_index = items.argsort(dim=1)
    by_score = scores.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    return items.gather(1, by_index.gather(1, by_score))


def best_ms(programs: dict[str, Callable[[], object]], num_turns: int) -> dict[str, float]:
    """Least processor milliseconds of each program's turns, after one that is not timed."""
    best = dict.fromkeys(programs, float("inf"))
    for turn in range(num_turns + 1):
        for name, program in programs.items():
            begin = time.process_time()
            program()
            if turn:
                best[name] = min(best[name], 1e3 * (time.process_time() - begin))
    return best


def measure_size(num_items: int, num_turns: int) -> dict[str, Any]:
    """All figures of one catalogue."""
    codes_NL = make_codes(num_items)
    begin = time.process_time()
    trie = Trie.from_table(codes_NL, (NUM_CODES,) * NUM_LEVELS)
    _ = trie.child_bits  # made on first use, and counted as memory from then on
    build_s = time.process_time() - begin  # of one processor: nothing in it is parallel
    index = StaticIndex.from_table(codes_NL, NUM_CODES)
    logits = make_logits(NUM_REQUESTS, NUM_CODES)
    single = [logits_BWK[:1] for logits_BWK in logits]
    (items, scores), (their_items, their_scores) = search(trie, logits), search_static(index, logits)
    torch.testing.assert_close(scores, their_scores)
    torch.testing.assert_close(order_ties(items, scores), order_ties(their_items, their_scores))
    generator = np.random.default_rng(1)
    new_ML = generator.integers(NUM_CODES, size=(NUM_CHANGES, NUM_LEVELS))
    leaving = generator.choice(num_items, size=NUM_CHANGES, replace=False)
    changed = trie.add(new_ML).remove(leaving)
    staying = np.setdiff1d(np.arange(2 * NUM_CHANGES), leaving)[:1]
    excluded = [generator.integers(num_items, size=100) for _ in range(32)]
    programs: dict[str, Callable[[], object]] = {
        "step": lambda: search(trie, logits),
        "csr_step": lambda: search_static(index, logits),
        "single_step": lambda: search(trie, single),
        "single_csr_step": lambda: search_static(index, single),
        "changed_step": lambda: search(changed, logits),
        "bulk_update": lambda: trie.add(new_ML).remove(leaving),
        "add": lambda: changed.add(new_ML[:1]),
        "remove": lambda: changed.remove(staying),
        "restore": lambda: changed.restore(leaving[:1]),
        "exclusion": lambda: Exclusions(trie, excluded),
    }
    took = best_ms(programs, num_turns)
    return {
        "items": num_items,
        "step_ms": took["step"] / NUM_LEVELS,
        "csr_step_ms": took["csr_step"] / NUM_LEVELS,
        "ratio_vs_csr": took["csr_step"] / took["step"],
        "single_step_ms": took["single_step"] / NUM_LEVELS,
        "single_ratio_vs_csr": took["single_csr_step"] / took["single_step"],
        "changed_step_ms": took["changed_step"] / NUM_LEVELS,
        "build_s": build_s,
        "bytes_per_item": trie.num_bytes / num_items,
        "csr_bytes_per_item": index.num_bytes / num_items,
        "update_ms": max(took["add"], took["remove"], took["restore"]),
        "bulk_update_ms": took["bulk_update"],
        "exclusion_ms": took["exclusion"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trie", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="up to 10^6 items, fewer turns: under a minute")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    rows = []
    for num_items in QUICK_SIZES if arguments.quick else FULL_SIZES:
        rows.append(measure_size(num_items, num_turns=5 if arguments.quick else 20))
        print(", ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()), flush=True)
    figures: dict[str, Any] = {key: [float(f"{row[key]:.4g}") for row in rows] for key in rows[0]}
    figures["flatness"] = round(max(figures["step_ms"]) / min(figures["step_ms"]), 2)
    settings = {"codes_per_level": [NUM_CODES] * NUM_LEVELS, "beams": NUM_BEAMS, "threads": torch.get_num_threads()}
    publish(figures | settings, arguments.json)


if __name__ == "__main__":
    main()
