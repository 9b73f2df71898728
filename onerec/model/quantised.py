"""Blocks whose weights have eight bits, for decoding: made from the float weights of a model, which they replace.

Norms, routers and what stands outside of the blocks (embeddings, heads) keep their precision.

Shapes: D inner width, F outer width, T tokens, A assignments, E experts.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.float8_products import FLOAT8_MULTIPLE, float8_product, multiplies_float8, quantise_float8
from kernels.int8_products import int8_product, quantise_int8
from onerec.errors import ConfigError
from onerec.model.moe import Experts
from onerec.model.precision import Precision, choose_precision


class QuantisedLinear(nn.Module):
    """A linear map without bias whose weights are numbers of eight bits, times a scale for each output."""

    scales_F1: Tensor

    def __init__(self, codes_FD: Tensor, scales_F1: Tensor) -> None:
        super().__init__()
        # A parameter, so that a model counts as many of them as before.
        self.codes_FD = nn.Parameter(codes_FD, requires_grad=False)
        self.register_buffer("scales_F1", scales_F1)

    @property
    def in_features(self) -> int:
        """Width of what is mapped."""
        return self.codes_FD.size(1)

    @property
    def out_features(self) -> int:
        """Width of the result."""
        return self.codes_FD.size(0)


class Int8Linear(QuantisedLinear):
    """Of whole numbers; what is mapped stays as it is."""

    def __init__(self, weight_FD: Tensor, dtype: torch.dtype) -> None:
        super().__init__(*quantise_int8(weight_FD, dtype))

    @property
    def weight(self) -> Tensor:
        """The matrix (F, D) that the numbers stand for, made anew at each call."""
        return self.codes_FD * self.scales_F1

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., F)."""
        return int8_product(x, self.codes_FD, self.scales_F1)


class Float8Linear(QuantisedLinear):
    """Of numbers with an exponent, as what is mapped becomes too."""

    def __init__(self, weight_FD: Tensor) -> None:
        super().__init__(*quantise_float8(weight_FD))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., F) in bfloat16."""
        return float8_product(x, self.codes_FD, self.scales_F1)


_Make = Callable[[Tensor], QuantisedLinear]


class QuantisedExperts(nn.Module):
    """`moe.Experts` one after the other, so that no more than one has its weights widened."""

    def __init__(self, experts: Experts, make: _Make) -> None:
        super().__init__()
        self.inner = nn.ModuleList(make(inner_DF.T) for inner_DF in experts.inner_EDF)
        self.output = nn.ModuleList(make(output_FD.T) for output_FD in experts.output_EFD)

    def forward(self, x_TD: Tensor, tokens_A: Tensor, counts_E: Tensor) -> Tensor:
        """Tokens `tokens_A`, sorted by expert, `counts_E` of them each -> (A, D)."""
        groups = x_TD.index_select(0, tokens_A).split(counts_E.tolist())
        mixed = [
            self._expert(number, rows_aD) if len(rows_aD) else rows_aD  # a matrix is not widened for nobody
            for number, rows_aD in enumerate(groups)
        ]
        return torch.cat(mixed)

    def _expert(self, number: int, rows_aD: Tensor) -> Tensor:
        gates_aF, values_aF = self.inner[number](rows_aD).chunk(2, dim=-1)
        mixed_aD: Tensor = self.output[number](F.silu(gates_aF) * values_aF)
        return mixed_aD


def require_hardware(precision: Precision, device: torch.device) -> None:
    """Refuse, with ConfigError, a precision that the device has not."""
    if precision == "float8" and not multiplies_float8(device):
        raise ConfigError(
            f"decoding.precision: found float8 on {device}, expected a CUDA device of compute capability 8.9 or more "
            "(Ada, Hopper), which multiplies it. Take int8 or bfloat16."
        )


def lower_precision(blocks: nn.Module, precision: Precision) -> None:
    """Change blocks in place to multiply in a precision below float32.

    `int8` takes activations in bfloat16 where the hardware multiplies that, in float32 elsewhere; `float8` leaves
    matrices in bfloat16 whose widths are no multiples of 16.
    """
    if precision == "float8":
        quantise(blocks, "float8", torch.bfloat16)
    elif precision == "int8":
        quantise(blocks, "int8", getattr(torch, choose_precision("auto")))
    else:
        blocks.to(getattr(torch, precision))


def quantise(blocks: nn.Module, kind: Literal["int8", "float8"], dtype: torch.dtype) -> None:
    """Give blocks weights of eight bits, made from those they have, and take everything else to `dtype`."""

    def make(weight_FD: Tensor) -> QuantisedLinear:
        weight_FD = weight_FD.detach()
        return Int8Linear(weight_FD, dtype) if kind == "int8" else Float8Linear(weight_FD)

    quantised: dict[str, nn.Module] = {}
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear) and _fits(module.weight, kind):
            quantised[name] = make(module.weight)
        elif isinstance(module, Experts) and _fits(module.inner_EDF[0], kind) and _fits(module.output_EFD[0], kind):
            quantised[name] = QuantisedExperts(module, make)
    blocks.to(dtype)  # before they are put in place: it would widen float8
    for name, module in quantised.items():
        blocks.set_submodule(name, module)


def _fits(weight: Tensor, kind: str) -> bool:
    return kind == "int8" or all(width % FLOAT8_MULTIPLE == 0 for width in weight.shape)
