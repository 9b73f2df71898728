"""Codes of residual quantisers by the fastest way where the rows are.

Legend: N rows, D width, K codes a level, L levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import reference
from kernels.backends import Backend, takes_kernel


def assign_residual(rows_ND: Tensor, codebooks: Sequence[Tensor], backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Codes, int64 (N, L), and what is left over, float32 (N, D), as `kernels.reference.assign_residual` gives them.

    Args:
        codebooks: one (K, D) tensor a level; the kernel takes levels of one size.
        backend: a Triton kernel on CUDA; a named one that cannot run is an error.

    Raises:
        ImportError: a backend is asked for whose package is not installed.
    """
    one_size = len({codebook_KD.shape for codebook_KD in codebooks}) == 1
    if one_size and len(rows_ND) and takes_kernel(backend, "triton", rows_ND):
        from kernels.triton_residual_codes import residual_codes

        return residual_codes(rows_ND, torch.stack(list(codebooks)))
    return reference.assign_residual(rows_ND, codebooks)
