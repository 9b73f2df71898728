"""Every Triton kernel through the compiler, down to machine code for an H100, on a machine without one.

The interpreter accepts what the compiler refuses. Minutes long: run by hand with `-m slow` after changing a kernel.
"""

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

pytestmark = pytest.mark.slow

SHARED_BYTES = 227 * 1024  # that a program may have there
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were launched, each compiled in place of being run."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernels import triton_beam_attention

    names: list[str] = []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(self.arg_names, arguments, strict=False)) | options
        constants = {(p.num,): given[p.name] for p in self.params if p.is_constexpr}
        signature = {p.name: "constexpr" if p.is_constexpr else type_of(given[p.name]) for p in self.params}
        kernel = triton.compile(ASTSource(self, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= SHARED_BYTES
        names.append(self.__name__)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(triton_beam_attention, "num_processors", lambda device: 132)
    return names


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def test_beam_attention(compiled: list[str]) -> None:
    from kernels.triton_beam_attention import beam_attention

    queries, keys = torch.zeros(2, 4, 50, 64).bfloat16(), torch.zeros(2, 4, 300, 64).bfloat16()
    beam_attention(queries, keys, keys, torch.ones(2, 300, dtype=torch.bool))
    assert compiled == ["_attend_to_part", "_merge_parts"]


def test_trie_top_k(compiled: list[str]) -> None:
    from kernels.triton_trie_top_k import trie_top_k

    begins = torch.zeros(2, 50, dtype=torch.int64)
    dead = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(512, dtype=torch.uint8), 12
    logits = torch.zeros(2, 50, 2048).bfloat16()
    trie_top_k(logits, torch.zeros(2, 50), begins, begins + 9, torch.zeros(9, dtype=torch.int16), 1500, 50, dead)
    assert compiled == ["_best_of_beam"]


@pytest.mark.parametrize("form", ["softmax", "silu"])
def test_jagged_attention(compiled: list[str], form: str) -> None:
    from kernels.triton_jagged_attention import JaggedAttention
    from tests.kernels.jagged_cases import make, offsets_of, times_of

    lengths = [5, 3]
    tensors = make(lengths, 2, 64, 0, torch.bfloat16)
    mixed = JaggedAttention.apply(*tensors, times_of(lengths, 0), offsets_of(lengths), 5, 0.1, form == "softmax", 0.3)
    mixed.sum().backward()
    assert compiled == ["_attend", "_differentiate_queries", "_differentiate_keys"]


def test_residual_codes(compiled: list[str]) -> None:
    from kernels.triton_residual_codes import residual_codes

    residual_codes(torch.zeros(100, 384), torch.zeros(3, 256, 384))
    assert compiled == ["_assign"]


def test_routed_products(compiled: list[str]) -> None:
    from kernels.triton_grouped_products import RoutedProduct

    tokens, weights = (
        torch.zeros(9, 64).bfloat16().requires_grad_(),
        torch.zeros(3, 64, 128).bfloat16().requires_grad_(),
    )
    rows_A = torch.zeros(6, dtype=torch.int64)
    RoutedProduct.apply(tokens, weights, torch.tensor([3, 0, 3]), rows_A).sum().backward()
    assert compiled == ["_multiply", "_multiply", "_differentiate_weights"]


def test_int8_products(compiled: list[str]) -> None:
    from kernels.triton_int8_products import int8_product

    weights = torch.zeros(300, 128, dtype=torch.int8), torch.zeros(300, 1).bfloat16()
    int8_product(torch.zeros(50, 128).bfloat16(), *weights)
    assert compiled == ["_multiply_widened"]
