"""What every Triton kernel must move and compute, and how near to that it comes: `python -m benchmarks.kernels`.

    [--json PATH] [--quick]

For each kernel at the sizes of a model of 30 million parameters that decodes 512 beams: the bytes of its inputs and
results, each counted once, and the operations of its matrix products (for the trie's step those of the log-softmax).
The least time is the larger of bytes over bandwidth and operations over peak (the roofline of Williams et al. 2009).

On a GPU bandwidth and peak are measured first, by the copy of 1 GiB and by a product of two 8192 x 8192 matrices in
bfloat16 (float32 for the residual quantiser, which needs it); `share_of_bound` is the least time over the best of the
kernel's turns, `torch_ratio` the time of plain torch over the kernel's. Without one the counts alone are printed.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.figures import publish
from kernels.backends import Backend, is_installed
from kernels.beam_attention import attend_beams
from kernels.int8_products import int8_product, quantise_int8
from kernels.jagged_attention import Form, attend_jagged
from kernels.residual_codes import assign_residual
from kernels.routed_products import routed_product

_NUM_COPIED = 2**28  # float32 numbers
_PEAK_SIDE = 8192


@dataclass(frozen=True)
class Work:
    """One kernel at one size."""

    name: str
    num_bytes: int
    num_operations: int
    dtype: torch.dtype
    prepare: Callable[[], Callable[[Backend], object]]  # makes the inputs and returns what is timed


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batches."""

    requests: int
    beams: int
    history: int
    codes: int
    rows: int  # items to be given codes


FULL = Sizes(requests=32, beams=512, history=512, codes=8192, rows=2**20)
QUICK = Sizes(requests=4, beams=128, history=128, codes=2048, rows=2**16)
HEADS, WIDTH, MODEL_WIDTH, EXPERTS, EXPERTS_A_TOKEN, INNER = 8, 64, 512, 24, 2, 1024
LEVELS, VECTOR, WIDE = 3, 512, 8192
_HALF, _WHOLE = 2, 4  # bytes of bfloat16 and float32


def list_works(sizes: Sizes) -> list[Work]:
    """All kernels."""
    return [
        _beam_attention(sizes),
        _trie_step(sizes),
        *(_jagged_attention(sizes, form, backward) for form in get_args(Form) for backward in (False, True)),
        _routed_product(sizes),
        _int8_product(sizes),
        _residual_codes(sizes),
    ]


def _randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def _beam_attention(sizes: Sizes) -> Work:
    num_rows, num_keys = sizes.requests * HEADS * sizes.beams, sizes.requests * HEADS * sizes.history

    def prepare() -> Callable[[Backend], object]:
        queries = _randn(sizes.requests, HEADS, sizes.beams, WIDTH)
        keys, values = (_randn(sizes.requests, HEADS, sizes.history, WIDTH) for _ in range(2))
        return torch.no_grad()(lambda backend: attend_beams(queries, keys, values, backend=backend))

    num_bytes = _HALF * WIDTH * (2 * num_rows + 2 * num_keys)
    return Work("beam_attention", num_bytes, 4 * num_rows * sizes.history * WIDTH, torch.bfloat16, prepare)


def _trie_step(sizes: Sizes) -> Work:
    """Half of the codes may follow each beam; a logit costs an exponential and an addition."""
    num_logits, most = sizes.requests * sizes.beams * sizes.codes, sizes.codes // 2

    def prepare() -> Callable[[Backend], object]:
        from kernels.triton_trie_top_k import trie_top_k

        logits = _randn(sizes.requests, sizes.beams, sizes.codes)
        begins = torch.arange(sizes.beams, device="cuda").expand(sizes.requests, -1) * most
        codes = torch.arange(0, sizes.codes, 2, device="cuda", dtype=torch.int16).repeat(sizes.beams)
        scores = _randn(sizes.requests, sizes.beams, dtype=torch.float32)

        def step(backend: Backend) -> object:
            if backend == "triton":
                return trie_top_k(logits, scores, begins, begins + most, codes, most, sizes.beams)
            steps = logits.log_softmax(dim=2)[:, :, ::2] + scores[..., None]
            return steps.flatten(1).topk(sizes.beams, dim=1)

        return step

    num_bytes = _HALF * num_logits + _HALF * sizes.beams * most
    return Work("trie_step", num_bytes, 2 * num_logits, torch.bfloat16, prepare)


def _jagged_attention(sizes: Sizes, form: Form, backward: bool) -> Work:
    """Histories of all lengths up to the longest; backward multiplies five matrices where forward does two."""
    lengths = torch.linspace(1, sizes.history, sizes.requests * 4).long()
    total, pairs = int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())

    def prepare() -> Callable[[Backend], object]:
        queries, keys, values = (_randn(total, HEADS, WIDTH).requires_grad_() for _ in range(3))
        places, intervals = (_randn(size, dtype=torch.float32).requires_grad_() for size in (sizes.history, 73))
        times = torch.rand(total, device="cuda", dtype=torch.float64).mul(1e6)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cuda()

        def attend(backend: Backend) -> Tensor:
            inputs = queries, keys, values, offsets, sizes.history, form, places, intervals, times
            return attend_jagged(*inputs, scale=WIDTH**-0.5, backend=backend)

        if not backward:
            return torch.no_grad()(attend)
        return lambda backend: torch.autograd.grad(
            attend(backend).float().sum(), [queries, keys, values, places, intervals]
        )

    moved, products = (11, 14) if backward else (4, 4)  # with the forward pass that a backward pass needs
    num_bytes = _HALF * moved * total * HEADS * WIDTH
    name = f"jagged_{form}" + ("_and_backward" if backward else "")
    return Work(name, num_bytes, products * pairs * HEADS * WIDTH, torch.bfloat16, prepare)


def _routed_product(sizes: Sizes) -> Work:
    tokens = sizes.requests * sizes.beams
    rows = tokens * EXPERTS_A_TOKEN

    def prepare() -> Callable[[Backend], object]:
        inputs, weights = _randn(tokens, MODEL_WIDTH), _randn(EXPERTS, MODEL_WIDTH, INNER)
        chosen = torch.randint(EXPERTS, (rows,), device="cuda")
        counts, rows_A = torch.bincount(chosen, minlength=EXPERTS), chosen.argsort() // EXPERTS_A_TOKEN
        return lambda backend: routed_product(inputs, weights, counts, rows_A, backend)

    num_bytes = _HALF * (tokens * MODEL_WIDTH + EXPERTS * MODEL_WIDTH * INNER + rows * INNER)
    return Work("routed_product", num_bytes, 2 * rows * MODEL_WIDTH * INNER, torch.bfloat16, prepare)


def _int8_product(sizes: Sizes) -> Work:
    """The rows of a request or two, and more weights than a GPU's cache holds."""
    rows = sizes.beams // 4

    def prepare() -> Callable[[Backend], object]:
        x = _randn(rows, WIDE)
        weights = quantise_int8(_randn(WIDE, WIDE, dtype=torch.float32), x.dtype)
        return lambda backend: int8_product(x, *weights, backend)

    num_bytes = WIDE * WIDE + 2 * _HALF * rows * WIDE
    return Work("int8_product", num_bytes, 2 * rows * WIDE * WIDE, torch.bfloat16, prepare)


def _residual_codes(sizes: Sizes) -> Work:
    num_numbers = LEVELS * sizes.codes * VECTOR

    def prepare() -> Callable[[Backend], object]:
        rows = _randn(sizes.rows, VECTOR, dtype=torch.float32)
        codebooks = list(_randn(LEVELS, sizes.codes, VECTOR, dtype=torch.float32))
        return lambda backend: assign_residual(rows, codebooks, backend)

    num_bytes = _WHOLE * (2 * sizes.rows * VECTOR + num_numbers) + 8 * sizes.rows * LEVELS
    return Work("residual_codes", num_bytes, 2 * sizes.rows * num_numbers, torch.float32, prepare)


def best_seconds(program: Callable[[], object], num_turns: int = 20) -> float:
    """Least time of a program on the GPU, by its own clock, after turns that compile and warm up."""
    for _ in range(3):
        program()
    best = float("inf")
    for _ in range(num_turns):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        program()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def measure_limits() -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of products by type."""
    limits = {"bytes_per_s": _measure_bandwidth()}
    for dtype in (torch.bfloat16, torch.float32):
        matrix = _randn(_PEAK_SIDE, _PEAK_SIDE, dtype=dtype)
        seconds = best_seconds(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
        limits[str(dtype)] = 2 * _PEAK_SIDE**3 / seconds
    return limits


def _measure_bandwidth() -> float:
    source, target = torch.empty(2, _NUM_COPIED, device="cuda")
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source))


def describe(work: Work, limits: dict[str, float] | None) -> dict[str, Any]:
    """The counts and, within the limits of a GPU, how near the kernel comes to them."""
    row: dict[str, Any] = {
        "mebibytes": round(work.num_bytes / 2**20, 2),
        "gigaoperations": round(work.num_operations / 1e9, 2),
        "operations_per_byte": round(work.num_operations / work.num_bytes, 1),
    }
    if limits is None:
        return row
    least_s = max(work.num_bytes / limits["bytes_per_s"], work.num_operations / limits[str(work.dtype)])
    program = work.prepare()
    took_s, torch_s = best_seconds(lambda: program("triton")), best_seconds(lambda: program("torch"))
    return row | {
        "milliseconds": round(1e3 * took_s, 4),
        "bound_milliseconds": round(1e3 * least_s, 4),
        "share_of_bound": round(least_s / took_s, 3),
        "torch_ratio": round(torch_s / took_s, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Count, measure where there is a GPU, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    arguments = parser.parse_args(argv)
    sizes = QUICK if arguments.quick else FULL
    measures = torch.cuda.is_available() and is_installed("triton")
    limits = measure_limits() if measures else None
    device = torch.cuda.get_device_name() if measures else "no GPU with triton here: counts only, nothing was measured"
    figures: dict[str, Any] = {work.name: describe(work, limits) for work in list_works(sizes)}
    publish(figures | {"device": device, "limits": limits, "sizes": vars(sizes)}, arguments.json)


if __name__ == "__main__":
    main()
