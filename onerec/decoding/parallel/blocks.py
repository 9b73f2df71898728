"""Tensor parallelism (Megatron-LM, arXiv 1909.08053, section 3) of a model's blocks, through DeepSpeed's inference.

A process holds some heads of every attention and part of every feed-forward's inner width, and what the processes'
parts add to the residual stream is summed. DeepSpeed cuts the matrices by an injection policy that names those whose
products are to be summed. Seen with version 0.19.8:

1. It cuts a matrix in parts of neighbouring rows, whatever they stand for: queries, keys and values that one matrix
   makes, or gates and values, would go to different processes, and the answers be silently wrong. So each fused matrix
   first has its rows put in the order of the processes.
2. Parameters that are no `nn.Linear` stay whole. Experts are cut here, by their inner width.
3. It takes the number of key heads from a model's configuration and would give one process all queries of a shared
   head. It is given the blocks alone, which have none; a lazy context's key heads are chosen here.
4. By itself it shares out whole lots of 64 rows, so that heads and widths would not meet: here lots are of one row.
5. An HSTU block norms all heads together, behind which no cut of DeepSpeed's can stand: such blocks stay whole.

A step does not fold the context into the projections (`kernels.folded_attention`), as one process does on a CPU: the
folded form has no product that DeepSpeed would sum.

Shapes: B batch, G key heads, S positions, d head width, E experts, D width, F inner width of an expert.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onerec.decoding.parallel.processes import Processes
from onerec.deepspeed_package import load_deepspeed
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.context import ContextBlock
from onerec.model.decoder import DecoderBlock
from onerec.model.layers import CrossAttention, FeedForward, SelfAttention, residual_dtype
from onerec.model.lazy import LazyCrossAttention
from onerec.model.moe import Experts
from onerec.model.onerec import OneRec

_Sets = tuple[Tensor, ...]
_Kind = TypeVar("_Kind", bound=nn.Module)


def check_divisible(config: OneRecConfig, number: int) -> None:
    """Refuse a model whose heads or inner widths cannot be shared out evenly.

    Raises:
        ConfigError: it names the first that cannot.
    """
    counts = {"num_heads": config.num_heads, "d_ff": config.d_ff}
    if config.num_experts:
        counts["expert_d_ff"] = config.expert_d_ff
    for name, count in counts.items():
        if count % number:
            raise ConfigError(
                f"model.{name}: found {count} for {number} processes, expected a multiple of them. "
                "Start torchrun with another --nproc-per-node."
            )
    key_heads = config.num_kv_heads if config.context == "lazy" else number
    if key_heads % number and number % key_heads:
        raise ConfigError(
            f"model.num_kv_heads: found {key_heads} for {number} processes, expected a multiple or a divisor of them. "
            "Start torchrun with another --nproc-per-node."
        )


def cut_blocks(model: OneRec, processes: Processes) -> None:
    """Leave of the blocks this process's part, on its device; all processes together.

    Raises:
        ConfigError: heads or widths that do not divide, or DeepSpeed is not installed.
    """
    check_divisible(model.config, processes.number)
    blocks = nn.ModuleList([*model.encoder.blocks, *model.decoder.blocks])
    for matrix, parts in _fused(blocks):
        matrix.weight.data = order_rows(matrix.weight.data, parts, processes.number)
    for experts in _all(blocks, Experts):
        cut_experts(experts, processes)
    if model.decoder.context_processor is not None:
        _choose_key_heads(model.decoder.context_processor, model.config, processes)
        for attention in _all(blocks, LazyCrossAttention):
            own_heads = max(1, model.config.num_kv_heads // processes.number)
            attention.num_queries_of_key = model.config.num_heads // processes.number // own_heads
    deepspeed = load_deepspeed(f"processes: found {processes.number}", instead="decode with one process")
    deepspeed.init_inference(
        blocks,
        dtype=residual_dtype(blocks),
        tensor_parallel={"tp_size": processes.number, "tp_grain_size": 1},
        replace_with_kernel_inject=False,  # which would leave every matrix whole
        injection_policy=_policy(blocks),
    )


def order_rows(weight: Tensor, num_parts: int, number: int) -> Tensor:
    """Rows of parts that a matrix makes side by side, so that those of a process, of each part, become neighbours."""
    parts = [part.chunk(number) for part in weight.chunk(num_parts)]
    return torch.cat([part[rank] for rank in range(number) for part in parts])


def cut_experts(experts: Experts, processes: Processes) -> None:
    """Leave of each expert this process's part of its inner width, and sum what the parts give."""
    gates_EDF, values_EDF = (part.chunk(processes.number, dim=2) for part in experts.inner_EDF.data.chunk(2, dim=2))
    own = processes.rank
    experts.inner_EDF = nn.Parameter(torch.cat([gates_EDF[own], values_EDF[own]], dim=2))
    experts.output_EFD = nn.Parameter(experts.output_EFD.data.chunk(processes.number, dim=1)[own].clone())

    def add_up(_: nn.Module, __: Any, mixed_AD: Tensor) -> Tensor:
        return processes.sum(mixed_AD)

    experts.register_forward_hook(add_up)


def _choose_key_heads(processor: nn.Module, config: OneRecConfig, processes: Processes) -> None:
    """Let a lazy context give the keys and values (B, G, S, d) that this process's query heads read."""
    first = processes.rank * config.num_kv_heads // processes.number
    end = first + max(1, config.num_kv_heads // processes.number)

    def choose(_: nn.Module, __: Any, sets: tuple[_Sets, _Sets]) -> tuple[_Sets, _Sets]:
        keys, values = sets
        return tuple(key[:, first:end] for key in keys), tuple(value[:, first:end] for value in values)

    processor.register_forward_hook(choose)


def _fused(blocks: nn.Module) -> Iterator[tuple[nn.Linear, int]]:
    """The matrices that make several things at once, and how many."""
    for attention in _all(blocks, SelfAttention):
        yield attention.query_key_value, 3
    for cross_attention in _all(blocks, CrossAttention):
        yield cross_attention.key_value, 2
    for feed_forward in _all(blocks, FeedForward):
        if feed_forward.gated:
            yield feed_forward.inner, 2


def _policy(blocks: nn.Module) -> dict[type[nn.Module], tuple[str, ...]]:
    """Of each kind of block the matrices whose products are summed, by their last two names."""
    policy: dict[type[nn.Module], tuple[str, ...]] = {}
    kinds: tuple[type[nn.Module], ...] = (ContextBlock, DecoderBlock)
    for kind in kinds:
        names = {name for block in _all(blocks, kind) for name, _ in block.named_modules() if name.endswith("output")}
        if names:
            policy[kind] = tuple(sorted(".".join(name.split(".")[-2:]) for name in names))
    return policy


def _all(module: nn.Module, kind: type[_Kind]) -> Iterator[_Kind]:
    return (part for part in module.modules() if isinstance(part, kind))
