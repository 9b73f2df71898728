"""Speed against transformers' generate: `python -m benchmarks.decoding [--quick] [--compile] [--beams N] [--json PATH]`

Both decode the same random histories of 20 items over the same catalogue (three levels of 256 codes and a suffix), in
layers of TIGER's shape: 4 + 4 layers, width 128, 6 heads of 64, feed-forward 1024. Weights are random: time does not
depend on them. A request is timed from item indices to ranked items, encoding included; all beams are returned.

- T5 reads 20 x 4 code tokens and decodes by `generate`, with the trie of the TIGER baseline as
  `prefix_allowed_tokens_fn` (`ratio_vs_generate_constrained`) and without any constraint (`ratio_vs_generate`).
- OneRec reads 20 items and decodes by `beam_search`, constrained: the same four codes an item as T5, and as keys with
  `unique_ids` a catalogue whose items have three codes each and no suffix (`collisions.policy: reassign`), which saves
  a third of the decoder's wide steps; T5 keeps TIGER's suffix.

Both do so in float32 and, where the hardware multiplies bfloat16, in that: OneRec as `decoding.precision` has it, T5
under autocast, each against the other in the same precision. `…ratio_vs_float32_generate…`, among the figures of
bfloat16, are not like for like: OneRec in bfloat16 against `generate` as it runs by default, in float32.
`default_precision` is that of `decoding.precision`; bfloat16 is an option, and what it loses of Recall on a trained run
is measured by `benchmarks.precision` (README has figures).

The programs take turns on the same batches; each figure is its best turn after one that is not timed. With `--compile`
OneRec's decoder has its turns both as it is and with its steps as compiled programs; `compiled_gain` and
`unique_ids_compiled_gain` are how many times as fast the latter is, all other figures are of the former. The ratios of
`cpu_ratio_…` compare processor seconds instead of the clock's, which others who use the machine disturb less.
`flops_utilisation` is OneRec's model FLOPs over the best rate of a 1024 x 1024 product; `search_share` is the
part of OneRec's time outside the model: trie, candidates and top-k. `invalid_rate` is the share of returned places that
hold no item of the catalogue, or one that is there already.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.figures import publish
from benchmarks.training import NUM_CODES, NUM_ITEMS, ONEREC_SHAPE, TIGER_SHAPE, make_table
from kernels.memory import keep_freed_memory
from onerec.baselines.tiger import FlatCodes, ItemTrie, build_t5, search_arguments
from onerec.config import DecodingSettings
from onerec.decoding.beam import beam_search
from onerec.decoding.trie import Trie
from onerec.model.configuration import OneRecConfig
from onerec.model.flops import decoding_flops
from onerec.model.onerec import OneRec
from onerec.model.precision import Precision, choose_precision
from onerec.model.prefixes import PrefixVectors
from onerec.training.pretraining import build_model
from onerec.training.throughput import measure_matmul_gflops
from tokenizer.table import SemanticIdTable

WIDTHS = (10, 50, 128, 512)
NUM_HISTORY_ITEMS = 20


@dataclass(frozen=True)
class Sizes:
    """How much is decoded to be timed."""

    max_requests: int  # of a batch
    max_rows: int  # requests x beams of a batch
    num_turns: int
    num_generate_turns: int


FULL = Sizes(max_requests=32, max_rows=2048, num_turns=8, num_generate_turns=2)
QUICK = Sizes(max_requests=4, max_rows=512, num_turns=3, num_generate_turns=1)


class ClockedModel:
    """A OneRec whose `decode_step` is timed, to tell the model's share of a search."""

    def __init__(self, model: OneRec) -> None:
        self.config, self.new_cache = model.config, model.new_cache
        self.seconds = 0.0
        self._model = model

    def decode_step(self, *arguments: Any) -> Tensor:
        begin = time.perf_counter()
        log_probs_BWK = self._model.decode_step(*arguments)
        self.seconds += time.perf_counter() - begin
        return log_probs_BWK


class Onerec:
    """Our side of the comparison."""

    def __init__(self, table: SemanticIdTable, precision: Precision) -> None:
        torch.manual_seed(0)
        self.model = build_model(ONEREC_SHAPE, table).eval().for_decoding(precision)
        self._prefix_vectors = self._pool_prefix_vectors()  # once a model, as `Recommender` does
        self.trie = Trie.from_table(table.codes_NL, table.codes_per_level)

    @torch.inference_mode()
    def decode(self, histories_BS: np.ndarray, num_beams: int, compiled: bool = False) -> Tensor:
        """Ranked items (B, W)."""
        self.model.decoder.compiled = compiled
        found = beam_search(self.model, self._encode(histories_BS), self.trie, num_beams, num_beams)
        self.model.decoder.compiled = False
        return found.items_BK

    @torch.inference_mode()
    def search_share(self, histories_BS: np.ndarray, num_beams: int) -> float:
        """Share of a request's time that is neither encoding nor decoder."""
        begin = time.perf_counter()
        context = self._encode(histories_BS)
        encoded = time.perf_counter()
        clocked = ClockedModel(self.model)
        beam_search(clocked, context, self.trie, num_beams, num_beams)
        ended = time.perf_counter()
        return (ended - encoded - clocked.seconds) / (ended - begin)

    def request_flops(self, num_beams: int) -> float:
        """Operations of one request, with as many beams at a level as there are prefixes for."""
        prefixes = [self.trie.num_nodes(level) for level in range(self.trie.num_levels - 1)]
        beams_per_level = [1, *(min(num_beams, num_prefixes) for num_prefixes in prefixes)]
        config: OneRecConfig = self.model.config
        return decoding_flops(config, NUM_HISTORY_ITEMS + 1, beams_per_level)

    def _encode(self, histories_BS: np.ndarray) -> Any:
        lengths_B = torch.full((len(histories_BS),), NUM_HISTORY_ITEMS)
        return self.model.encode(torch.from_numpy(histories_BS), lengths_B, self._prefix_vectors)

    @torch.inference_mode()
    def _pool_prefix_vectors(self) -> PrefixVectors | None:
        return self.model.pool_prefix_vectors()


class Generate:
    """The rival: transformers' T5 and `generate`."""

    def __init__(self, table: SemanticIdTable, precision: Precision) -> None:
        torch.manual_seed(0)
        self._autocast = precision == "bfloat16"
        self.codes = FlatCodes(table)
        self.model = build_t5(self.codes, TIGER_SHAPE).eval()
        self.trie = ItemTrie(self.codes.tokens_NL, table.bucket_rank_N)

    @torch.inference_mode()
    def decode(self, histories_BS: np.ndarray, num_beams: int, constrained: bool) -> None:
        constraint = self.trie.constraint([set()] * len(histories_BS)) if constrained else None
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            self.model.generate(
                **self.codes.encode(list(histories_BS), NUM_HISTORY_ITEMS),
                **search_arguments(num_beams, self.codes.num_levels),
                prefix_allowed_tokens_fn=constraint,
            )


def make_unique_table(seed: int = 0) -> SemanticIdTable:
    """As many items, each with three random codes that no other has."""
    space = (NUM_CODES,) * 3
    chosen_N = np.random.default_rng(seed).choice(NUM_CODES**3, size=NUM_ITEMS, replace=False)
    codes_NL = np.stack(np.unravel_index(chosen_N, space), axis=1)
    return SemanticIdTable.of_unique(codes_NL, space, map(str, range(NUM_ITEMS)))


def measure_width(
    onerec: Onerec, unique: Onerec, generates: dict[str, Generate], num_beams: int, sizes: Sizes, compiled: bool
) -> dict[str, float]:
    """Requests a second of each program at one width, and what OneRec's are made of; rivals have a prefix each."""
    num_requests = max(1, min(sizes.max_requests, sizes.max_rows // num_beams))
    num_items = onerec.trie.num_items
    histories_BS = np.random.default_rng(num_beams).integers(num_items, size=(num_requests, NUM_HISTORY_ITEMS))
    ours = our_programs(onerec, unique, histories_BS, num_beams, compiled)
    rivals: dict[str, Callable[[], object]] = {}
    for prefix, generate in generates.items():
        rivals[f"{prefix}generate_constrained"] = partial(generate.decode, histories_BS, num_beams, constrained=True)
        rivals[f"{prefix}generate"] = partial(generate.decode, histories_BS, num_beams, constrained=False)
        generate.decode(histories_BS[:1], num_beams, constrained=False)
    for program in ours.values():
        program()
    best_s, best_cpu_s = take_turns(ours | rivals, sizes)
    return {
        "batch_size": num_requests,
        **{f"{name}_requests_per_s".removeprefix("onerec_"): num_requests / least for name, least in best_s.items()},
        **ratios(best_s, best_cpu_s),
        "achieved_gflops": onerec.request_flops(num_beams) * num_requests / best_s["onerec"] / 1e9,
        "search_share": min(onerec.search_share(histories_BS, num_beams) for _ in range(sizes.num_turns)),
        "invalid_rate": invalid_rate(onerec.decode(histories_BS, num_beams), num_items),
    }


def our_programs(
    onerec: Onerec, unique: Onerec, histories_BS: np.ndarray, num_beams: int, compiled: bool
) -> dict[str, Callable[[], object]]:
    """OneRec over both catalogues, and by option again with compiled steps."""
    programs: dict[str, Callable[[], object]] = {
        "onerec": lambda: onerec.decode(histories_BS, num_beams),
        "unique_ids": lambda: unique.decode(histories_BS, num_beams),
    }
    if compiled:
        programs["compiled"] = lambda: onerec.decode(histories_BS, num_beams, compiled=True)
        programs["unique_ids_compiled"] = lambda: unique.decode(histories_BS, num_beams, compiled=True)
    return programs


def ratios(best_s: dict[str, float], best_cpu_s: dict[str, float]) -> dict[str, float]:
    """How many times as long the rivals take as OneRec, and OneRec as itself compiled, where that was timed too."""
    found = {}
    for rival in (name for name in best_s if "generate" in name):
        for program, prefix in (("onerec", ""), ("unique_ids", "unique_ids_")):
            found[f"{prefix}ratio_vs_{rival}"] = best_s[rival] / best_s[program]
            found[f"{prefix}cpu_ratio_vs_{rival}"] = best_cpu_s[rival] / best_cpu_s[program]
    if "compiled" in best_s:
        found["compiled_gain"] = best_s["onerec"] / best_s["compiled"]
        found["unique_ids_compiled_gain"] = best_s["unique_ids"] / best_s["unique_ids_compiled"]
    return found


def take_turns(programs: dict[str, Callable[[], object]], sizes: Sizes) -> tuple[dict[str, float], dict[str, float]]:
    """Least seconds and least processor seconds of each program's turns."""
    best_s, best_cpu_s = dict.fromkeys(programs, float("inf")), dict.fromkeys(programs, float("inf"))
    for turn in range(sizes.num_turns):
        for name, program in programs.items():
            if "generate" not in name or turn < sizes.num_generate_turns:
                begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
                program()
                best_s[name] = min(best_s[name], time.perf_counter() - begin_s)
                best_cpu_s[name] = min(best_cpu_s[name], time.process_time() - begin_cpu_s)
    return best_s, best_cpu_s


def invalid_rate(items_BW: Tensor, num_items: int) -> float:
    """Share of places without an item of the catalogue or with one a second time."""
    num_valid = sum(len({item for item in row if 0 <= item < num_items}) for row in items_BW.tolist())
    return 1 - num_valid / items_BW.numel()


def measure(sizes: Sizes, widths: Sequence[int], compiled: bool) -> dict[str, Any]:
    """All widths in every precision that the hardware multiplies."""
    torch.set_flush_denormal(True)
    table = make_table()
    precisions: set[Precision] = {"float32", choose_precision("auto")}
    figures = {
        precision: measure_precision(table, sizes, widths, precision, compiled) for precision in sorted(precisions)
    }
    return {"default_precision": DecodingSettings().precision} | figures


def measure_precision(
    table: SemanticIdTable, sizes: Sizes, widths: Sequence[int], precision: Precision, compiled: bool
) -> dict[str, Any]:
    """All widths; the machine's rate is the best of what was seen before and after."""
    onerec, unique = Onerec(table, precision), Onerec(make_unique_table(), precision)
    generates = {"": Generate(table, precision)}
    if precision != "float32":
        generates["float32_"] = Generate(table, "float32")
    dtype = getattr(torch, precision)
    peaks_gflops = [measure_matmul_gflops(dtype=dtype)]
    rows = {}
    for width in tqdm(widths, desc=f"decode in {precision}", unit="width"):
        rows[str(width)] = measure_width(onerec, unique, generates, width, sizes, compiled)
        peaks_gflops.append(measure_matmul_gflops(dtype=dtype))
    figures: dict[str, Any] = {"matmul_peak_gflops": round(max(peaks_gflops), 1)}
    for row in rows.values():
        row["flops_utilisation"] = row.pop("achieved_gflops") / max(peaks_gflops)
    figures["invalid_rate"] = max(row.pop("invalid_rate") for row in rows.values())
    for key in rows[str(widths[0])]:
        figures[key] = {width: float(f"{row[key]:.4g}") for width, row in rows.items()}
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="smaller batches, one turn of generate: under a minute")
    parser.add_argument("--beams", type=int, nargs="+", default=WIDTHS, help="beam widths to measure (default: all)")
    parser.add_argument("--compile", action="store_true", help="also with compiled steps: minutes more")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    sizes = QUICK if arguments.quick else FULL
    settings = {"sizes": vars(sizes), "items": NUM_ITEMS, "threads": torch.get_num_threads()}
    figures = measure(sizes, arguments.beams, arguments.compile)
    publish(figures | settings | {"compiled": arguments.compile}, arguments.json)


if __name__ == "__main__":
    main()
