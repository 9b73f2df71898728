"""Products of few rows with weights of eight bits, by Triton: the weights are widened as they are read.

With few rows a product takes as long as reading its weights. Widened beforehand, each is read once as one byte, written
as two and read again; here it is read once. Sums are float32, and a channel's scale meets its sum alone.

Legend: R rows, D inner width, F outer width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_support import dot_type, padded

_MOST_ROWS, _TILE_F, _TILE_D = 64, 64, 64


def int8_product(x_RD: Tensor, codes_FD: Tensor, scales_F1: Tensor) -> Tensor:
    """See `kernels.int8_products.int8_product`."""
    (num_rows, inner), outer = x_RD.shape, codes_FD.size(0)
    product_RF = torch.empty((num_rows, outer), dtype=x_RD.dtype, device=x_RD.device)
    tile_r = min(padded(num_rows), _MOST_ROWS)
    _multiply_widened[(triton.cdiv(outer, _TILE_F), triton.cdiv(num_rows, tile_r))](
        x_RD.contiguous(),
        codes_FD.contiguous(),
        scales_F1.contiguous(),
        product_RF,
        num_rows,
        inner,
        outer,
        TILE_R=tile_r,
        TILE_F=_TILE_F,
        TILE_D=_TILE_D,
        DOT=dot_type(x_RD.dtype),
    )
    return product_RF


@triton.jit
def _multiply_widened(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    product: tl.tensor,
    num_rows: tl.tensor,
    inner: tl.tensor,
    outer: tl.tensor,
    TILE_R: tl.constexpr,
    TILE_F: tl.constexpr,
    TILE_D: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """One tile of the result."""
    at_f = tl.program_id(0) * TILE_F + tl.arange(0, TILE_F)
    at_r = tl.program_id(1) * TILE_R + tl.arange(0, TILE_R)
    is_f, is_r = at_f < outer, at_r < num_rows
    row_x, row_codes = x + at_r.to(tl.int64)[:, None] * inner, codes + at_f.to(tl.int64)[:, None] * inner
    sums_RF = tl.zeros([TILE_R, TILE_F], tl.float32)
    for start in range(0, inner, TILE_D):
        at_d = start + tl.arange(0, TILE_D)
        is_d = (at_d < inner)[None, :]
        tile_RD = tl.load(row_x + at_d[None, :], mask=is_r[:, None] & is_d, other=0.0).to(tl.float32).to(DOT)
        tile_FD = tl.load(row_codes + at_d[None, :], mask=is_f[:, None] & is_d, other=0).to(tl.float32).to(DOT)
        sums_RF += tl.dot(tile_RD, tl.trans(tile_FD), input_precision="ieee")
    scale_F = tl.load(scales + at_f, mask=is_f, other=0.0).to(tl.float32)
    place_RF = product + at_r.to(tl.int64)[:, None] * outer + at_f[None, :]
    tl.store(place_RF, (sums_RF * scale_F[None, :]).to(product.dtype.element_ty), mask=is_r[:, None] & is_f[None, :])
