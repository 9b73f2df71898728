"""Assignment by residual quantisers, all levels in one launch, by Triton: rows are read once, residuals never written.

A program keeps the residuals of a tile of rows. For each level it walks the codebook tile by tile, keeps the nearest
code of each row, and takes that code's row away. |x|^2 is the same for every code and left out.

Legend: N rows, D width, K codes a level, L levels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_support import padded

_TILE_CODES = 32
_TILE_NUMBERS = 8192  # of a tile of residuals


def residual_codes(rows_ND: Tensor, codebooks_LKD: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (N, L), int64, and what is left over (N, D), float32; of equal distances the lowest code wins."""
    num_rows, width = rows_ND.shape
    num_levels, num_codes, _ = codebooks_LKD.shape
    codebooks_LKD = codebooks_LKD.float().contiguous()
    lengths_LK = codebooks_LKD.square().sum(dim=2)
    codes_NL = torch.empty((num_rows, num_levels), dtype=torch.int64, device=rows_ND.device)
    left_ND = torch.empty((num_rows, width), dtype=torch.float32, device=rows_ND.device)
    tile_d = padded(width)
    tile_n = max(16, min(64, _TILE_NUMBERS // tile_d))
    _assign[(triton.cdiv(num_rows, tile_n),)](
        rows_ND.contiguous(),
        codebooks_LKD,
        lengths_LK,
        codes_NL,
        left_ND,
        num_rows,
        num_codes,
        num_levels,
        WIDTH=width,
        TILE_D=tile_d,
        TILE_N=tile_n,
        TILE_K=_TILE_CODES,
    )
    return codes_NL, left_ND


@triton.jit
def _assign(
    rows: tl.tensor,
    codebooks: tl.tensor,
    lengths: tl.tensor,
    codes: tl.tensor,
    left: tl.tensor,
    num_rows: tl.tensor,
    num_codes: tl.tensor,
    num_levels: tl.tensor,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
) -> None:
    """All levels of a tile of rows."""
    at_n, at_d = tl.program_id(0).to(tl.int64) * TILE_N + tl.arange(0, TILE_N), tl.arange(0, TILE_D)
    is_n, is_d = at_n < num_rows, at_d < WIDTH
    inside_ND = is_n[:, None] & is_d[None, :]
    place_ND = at_n[:, None] * WIDTH + at_d[None, :]
    residual_ND = tl.load(rows + place_ND, mask=inside_ND, other=0.0).to(tl.float32)
    for level in range(num_levels):
        nearest_N = tl.full([TILE_N], float("inf"), tl.float32)
        code_N = tl.zeros([TILE_N], tl.int32)
        for start in range(0, num_codes, TILE_K):
            at_k = start + tl.arange(0, TILE_K)
            is_k = at_k < num_codes
            place_KD = at_k[:, None] * WIDTH + at_d[None, :]
            book_KD = tl.load(codebooks + place_KD, mask=is_k[:, None] & is_d[None, :], other=0.0)
            length_K = tl.load(lengths + at_k, mask=is_k, other=float("inf"))
            distance_NK = length_K[None, :] - 2 * tl.dot(residual_ND, tl.trans(book_KD), input_precision="ieee")
            least_N = tl.min(distance_NK, 1)
            first_N = tl.min(tl.where(distance_NK == least_N[:, None], at_k[None, :], num_codes), 1)
            code_N = tl.where(least_N < nearest_N, first_N, code_N)
            nearest_N = tl.minimum(nearest_N, least_N)
        tl.store(codes + at_n * num_levels + level, code_N.to(tl.int64), mask=is_n)
        residual_ND -= tl.load(codebooks + code_N[:, None] * WIDTH + at_d[None, :], mask=inside_ND, other=0.0)
        codebooks += num_codes * WIDTH
        lengths += num_codes
    tl.store(left + place_ND, residual_ND, mask=inside_ND)
