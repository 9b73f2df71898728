"""Matrix products of two numbers of eight bits with an exponent (e4m3 of arXiv 2209.05433), as newer GPUs have them.

Activations and weights are numbers up to 448 times one scale a row, which brings the row's largest number there. Sums
are float32. A row's scale is its own, so what it becomes does not depend on the rows beside it.

Legend: R rows, D inner width, F outer width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT8_MULTIPLE = 16  # of both widths, which the product asks for
_FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def multiplies_float8(device: torch.device) -> bool:
    """Whether the hardware has this product."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


def quantise_float8(x_RD: Tensor) -> tuple[Tensor, Tensor]:
    """The rows as numbers (R, D), float8, and scales (R, 1), float32; a row of zeros has scale 1."""
    x_RD = x_RD.float()
    largest_R1 = x_RD.abs().amax(dim=1, keepdim=True)
    scales_R1 = torch.where(largest_R1 == 0, 1.0, largest_R1 / _LARGEST)
    return (x_RD / scales_R1).to(torch.float8_e4m3fn), scales_R1


def float8_product(x: Tensor, codes_FD: Tensor, scales_F1: Tensor) -> Tensor:
    """(..., D) -> (..., F) in bfloat16. On a CPU, for tests, torch computes the same without such hardware."""
    codes_RD, scales_R1 = quantise_float8(x.flatten(0, -2))
    by_row = F.ScalingType.RowWise
    product_RF = F.scaled_mm(codes_RD, codes_FD.T, scales_R1, by_row, scales_F1.T, by_row, output_dtype=torch.bfloat16)
    return product_RF.view(*x.shape[:-1], codes_FD.size(0))
