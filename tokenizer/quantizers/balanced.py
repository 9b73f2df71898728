"""Balanced residual k-means (OneRec v1, arXiv 2502.18965): every cluster of every level is filled with exactly N/K
items, floor or ceiling where K does not divide N.

Departures:
1. v1 lets the clusters fill up one after another in the order of their index, which leaves scraps to the last. Here
   each round every unplaced item asks for its nearest open cluster, and a cluster takes the nearest of those who ask,
   until all are placed: still exact, and with a smaller error.
2. The start is faiss's k-means rather than random rows.
3. New items are not balanced: they take the nearest code of the frozen codebooks.

Legend: N items, D width, K codes a level.
"""

import numpy as np
import torch
from tqdm import tqdm

from tokenizer.config import QuantizerSettings
from tokenizer.quantizers.filling import fill_exactly, means
from tokenizer.quantizers.residual import ResidualQuantizer
from tokenizer.quantizers.rq_kmeans import fit_kmeans


def fit_balanced(
    vectors_ND: np.ndarray, settings: QuantizerSettings, seed: int
) -> tuple[ResidualQuantizer, np.ndarray]:
    """Codebooks, and the balanced codes of the fitted items, int32 (N, L)."""
    residual = torch.from_numpy(np.array(vectors_ND, dtype=np.float32))
    codebooks, codes = [], []
    for level, num_codes in enumerate(settings.sizes(len(vectors_ND))):
        codebook = fit_kmeans(residual.numpy(), num_codes, settings.iterations, seed + level)
        iterations = tqdm(range(settings.iterations), desc=f"balanced level {level + 1}", leave=False)
        codes_N = fill_exactly(residual, codebook)
        for _ in iterations:
            codebook = means(residual, codes_N, codebook)
            before_N, codes_N = codes_N, fill_exactly(residual, codebook)
            if torch.equal(before_N, codes_N):
                break
        residual -= codebook[codes_N]
        codebooks.append(codebook)
        codes.append(codes_N)
    quantizer = ResidualQuantizer("balanced", codebooks, vectors_ND.shape[1], chunk_rows=settings.chunk_rows)
    return quantizer, torch.stack(codes, dim=1).numpy().astype(np.int32)
