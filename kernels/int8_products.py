"""Matrix products with weights of eight bits: a quarter of float32's memory, half of bfloat16's.

The weights of each output channel are whole numbers from -127 to 127 times one scale, the largest weight over 127: the
symmetric, per-channel form of arXiv 1806.08342 (sections 2.2 and 3.1.1). Activations stay as they are, so what a row
becomes does not depend on the rows beside it.

Weights are widened for the product and thrown away after it. On a CPU with tiles for bfloat16 (AMX) this costs what the
product in bfloat16 costs from some hundred rows on, and twice that for fifty; torch's own product of bfloat16 with int8
took two to five times as long as float32's. Products of int8 with int8, for which activations are rounded row by row,
were faster for fifty rows of a thousand numbers alone, and their error a third larger.

Legend: R rows, D inner width, F outer width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.backends import Backend, takes_kernel

_LARGEST = 127
_FEW_ROWS = 256  # up to here a GPU waits for the weights rather than for their products


def quantise_int8(weight_FD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weights as numbers (F, D), int8, and scales (F, 1) of `dtype`, that of the activations.

    Each number is the nearest one. A channel of zeros has scale 1; one that holds NaN has scale NaN.
    """
    largest_F1 = weight_FD.abs().amax(dim=1, keepdim=True)
    scales_F1 = torch.where(largest_F1 == 0, 1.0, largest_F1 / _LARGEST).to(dtype)
    return (weight_FD / scales_F1.to(weight_FD.dtype)).round().to(torch.int8), scales_F1


def int8_product(x: Tensor, codes_FD: Tensor, scales_F1: Tensor, backend: Backend = "auto") -> Tensor:
    """(..., D) -> (..., F), both of the scales' dtype.

    Args:
        backend: on CUDA a Triton kernel for few rows; a named one that cannot run is an error.

    Raises:
        ImportError: a backend is asked for whose package is not installed.
    """
    num_rows = x.numel() // x.size(-1)
    wanted = backend == "triton" or 0 < num_rows <= _FEW_ROWS
    if wanted and takes_kernel(backend, "triton", x, codes_FD, scales_F1):
        from kernels import triton_int8_products

        return triton_int8_products.int8_product(x.flatten(0, -2), codes_FD, scales_F1).unflatten(0, x.shape[:-1])
    return F.linear(x, codes_FD * scales_F1)
