"""Clusters of equal size.

Legend: N rows, n rows that wait, D width, K codes, k codes that are open.
"""

import numpy as np
import torch

from kernels.reference import MAX_DISTANCES


def fill_exactly(rows_ND: torch.Tensor, codebook_KD: torch.Tensor) -> torch.Tensor:
    """Codes, int64 (N,), such that every code has floor(N/K) or ceil(N/K) rows; the lowest codes take the odd ones."""
    num_rows, num_codes = len(rows_ND), len(codebook_KD)
    free_K = torch.full((num_codes,), num_rows // num_codes)
    free_K[: num_rows % num_codes] += 1
    codes_N = torch.full((num_rows,), -1)
    waiting_n = torch.arange(num_rows)
    while len(waiting_n):
        open_k = torch.nonzero(free_K).squeeze(1)
        distances_n, nearest_n = _nearest_open(rows_ND[waiting_n], codebook_KD[open_k])
        wanted_n = open_k[nearest_n]
        taken_n = _accept_nearest(wanted_n, distances_n, free_K)
        codes_N[waiting_n[taken_n]] = wanted_n[taken_n]
        free_K -= torch.bincount(wanted_n[taken_n], minlength=num_codes)
        waiting_n = waiting_n[~taken_n]
    return codes_N


def _nearest_open(rows_nD: torch.Tensor, codebook_kD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance to, and index of, the nearest codebook row."""
    lengths_k = codebook_kD.square().sum(dim=1)
    parts = [
        torch.addmm(lengths_k, part, codebook_kD.T, alpha=-2.0).min(dim=1)
        for part in rows_nD.split(max(1, MAX_DISTANCES // len(codebook_kD)))
    ]
    distances_n = torch.cat([part.values for part in parts]) + rows_nD.square().sum(dim=1)
    return distances_n, torch.cat([part.indices for part in parts])


def _accept_nearest(wanted_n: torch.Tensor, distances_n: torch.Tensor, free_K: torch.Tensor) -> torch.Tensor:
    """Which rows are taken: for each code, the nearest of those who want it, as many as are free."""
    order = np.lexsort((distances_n.numpy(), wanted_n.numpy()))  # by code, then distance, then row
    sorted_codes = wanted_n[order]
    starts_K = torch.searchsorted(sorted_codes, torch.arange(len(free_K)))
    rank_n = torch.arange(len(order)) - starts_K[sorted_codes]
    taken_n = torch.zeros(len(order), dtype=torch.bool)
    taken_n[order] = rank_n < free_K[sorted_codes]
    return taken_n


def means(rows_ND: torch.Tensor, codes_N: torch.Tensor, codebook_KD: torch.Tensor) -> torch.Tensor:
    """Mean of every code's rows; a code without rows keeps its place."""
    counts_K = torch.bincount(codes_N, minlength=len(codebook_KD))
    sums_KD = torch.zeros_like(codebook_KD).index_add_(0, codes_N, rows_ND)
    return torch.where(counts_K[:, None] > 0, sums_KD / counts_K.clamp(min=1)[:, None], codebook_KD)
