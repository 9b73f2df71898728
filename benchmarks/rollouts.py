"""Rollouts against transformers' generate: `python -m benchmarks.rollouts [--quick] [--group N] [--json PATH]`.

A group of 512 items is drawn for each request (the group of OneRec's report, arXiv 2506.13695), at temperature 1, from
models and a catalogue of the same shape as `benchmarks.decoding`. A request is timed from item indices to the items of
its group, encoding included.

- OneRec encodes a request once and draws under the trie: `sample` independent items, `distinct` ones without
  replacement (by which all of a group differ), or the `beam`.
- T5 samples by `generate` with `do_sample` and `num_return_sequences`, with the trie of the TIGER baseline as
  `prefix_allowed_tokens_fn` (`ratio_vs_generate_constrained`) and without (`ratio_vs_generate`), where most samples are
  no item: `generate_legality`. It cannot draw distinct ones.

The programs take turns on the same batches; each figure is its best turn after one that is not timed. `distinct_share`
is the share of different items in a group of `sample`, `illegal` what was drawn that is no item.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding import NUM_HISTORY_ITEMS, Generate, Sizes, take_turns
from benchmarks.figures import publish
from benchmarks.training import NUM_ITEMS, ONEREC_SHAPE, make_table
from kernels.memory import keep_freed_memory
from onerec.decoding.beam import beam_search
from onerec.decoding.sampling import sample_distinct_items, sample_items
from onerec.decoding.trie import Trie
from onerec.model.context import Context
from onerec.model.onerec import OneRec
from onerec.model.prefixes import PrefixVectors
from onerec.training.pretraining import build_model

GROUP = 512
FULL = Sizes(max_requests=4, max_rows=2048, num_turns=5, num_generate_turns=2)
QUICK = Sizes(max_requests=1, max_rows=512, num_turns=2, num_generate_turns=1)


@dataclass(frozen=True)
class Sampler:
    """Our side: a model, its trie and how many items are drawn."""

    model: OneRec
    trie: Trie
    prefix_vectors: PrefixVectors | None  # pooled once a model, as a recommender does
    group: int

    @torch.inference_mode()
    def sample(self, histories_BS: np.ndarray) -> Tensor:
        """Independent items (B, G)."""
        context = self._encode(histories_BS)
        return sample_items(self.model, context, self.trie, self.group, torch.Generator()).items_BG

    @torch.inference_mode()
    def distinct(self, histories_BS: np.ndarray) -> Tensor:
        """Different items (B, G)."""
        context = self._encode(histories_BS)
        return sample_distinct_items(self.model, context, self.trie, self.group, torch.Generator()).items_BG

    @torch.inference_mode()
    def beam(self, histories_BS: np.ndarray) -> Tensor:
        """The likeliest items (B, G)."""
        return beam_search(self.model, self._encode(histories_BS), self.trie, self.group, self.group).items_BK

    def _encode(self, histories_BS: np.ndarray) -> Context:
        lengths_B = torch.full((len(histories_BS),), NUM_HISTORY_ITEMS)
        return self.model.encode(torch.from_numpy(histories_BS), lengths_B, self.prefix_vectors)


@torch.inference_mode()
def generate_group(rival: Generate, histories_BS: np.ndarray, group: int, constrained: bool) -> Tensor:
    """Flat tokens (B * G, 1 + L) of the rival's samples."""
    constraint = rival.trie.constraint([set()] * (len(histories_BS) * group)) if constrained else None
    num_levels = rival.codes.num_levels
    tokens: Tensor = rival.model.generate(
        **rival.codes.encode(list(histories_BS), NUM_HISTORY_ITEMS),
        do_sample=True,
        top_k=0,
        num_return_sequences=group,
        min_new_tokens=num_levels,
        max_new_tokens=num_levels,
        prefix_allowed_tokens_fn=constraint,
    )
    return tokens


def measure(sizes: Sizes, group: int) -> dict[str, Any]:
    """All programs on one batch."""
    torch.set_flush_denormal(True)
    table = make_table()
    torch.manual_seed(0)
    model, rival = build_model(ONEREC_SHAPE, table).eval(), Generate(table, "float32")
    with torch.inference_mode():
        vectors = model.pool_prefix_vectors()
    sampler = Sampler(model, Trie.from_table(table.codes_NL, table.codes_per_level), vectors, group)
    num_requests = max(1, min(sizes.max_requests, sizes.max_rows // group))
    histories_BS = np.random.default_rng(0).integers(NUM_ITEMS, size=(num_requests, NUM_HISTORY_ITEMS))
    programs: dict[str, Callable[[], object]] = {
        "sample": lambda: sampler.sample(histories_BS),
        "distinct": lambda: sampler.distinct(histories_BS),
        "beam": lambda: sampler.beam(histories_BS),
        "generate_constrained": lambda: generate_group(rival, histories_BS, group, constrained=True),
        "generate": lambda: generate_group(rival, histories_BS, group, constrained=False),
    }
    drawn_BG = sampler.sample(histories_BS)
    free = generate_group(rival, histories_BS[:1], group, constrained=False)
    seconds, _ = take_turns(programs, sizes)
    legal = {tuple(tokens) for tokens in rival.codes.tokens_NL.tolist()}
    return {
        "group": group,
        "batch_size": num_requests,
        "requests_per_s": {name: float(f"{num_requests / best:.4g}") for name, best in seconds.items()},
        "ratio_vs_generate_constrained": ratios(seconds, "generate_constrained"),
        "ratio_vs_generate": ratios(seconds, "generate"),
        "distinct_share": float(np.mean([len(set(items)) / group for items in drawn_BG.tolist()])),
        "illegal": int((drawn_BG < 0).sum()),
        "generate_legality": float(np.mean([tuple(tokens) in legal for tokens in free[:, 1:].tolist()])),
    }


def ratios(seconds: dict[str, float], rival: str) -> dict[str, float]:
    """How many times as long the rival takes as each kind of ours."""
    return {name: float(f"{seconds[rival] / seconds[name]:.4g}") for name in ("sample", "distinct", "beam")}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="one request, few turns: under a minute")
    parser.add_argument("--group", type=int, default=GROUP, help="items of a request (default: %(default)s)")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    sizes = QUICK if arguments.quick else FULL
    publish(measure(sizes, arguments.group) | {"items": NUM_ITEMS, "threads": torch.get_num_threads()}, arguments.json)


if __name__ == "__main__":
    main()
