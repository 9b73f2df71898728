"""RQ-KMeans (OneRec technical report, arXiv 2506.13695): k-means level by level on what the levels before left over.

Departures and additions:
1. The k-means is faiss's: centroids start at rows drawn by the seed, and at every iteration a cluster that lost all
   its rows is re-seeded beside a large one.
2. After a few iterations the clusters are evened out by `evening_fills` balanced fills of a sample, then the iterations
   go on freely. In wide spaces the cluster near the mean otherwise swallows a tenth of the rows at the lower levels,
   and nearly all of a small catalogue: evening it out lowers the error and the collisions. On Amazon-2014
   Beauty, of the same vectors, items that follow each other share more of the plain codes (0 fills).
3. A level trains on at most `train_rows_per_code` rows a code, drawn by the seed, so that memory stays bounded; the
   codes of all rows are then assigned in a stream.
4. Fewer distinct rows than codes: every distinct row is a centroid and the codebook is filled up with repeats, to
   which no row is assigned (of equal distances the lowest index wins) but which `reassign` may use.

Legend: N items, D width, K codes a level.
"""

import faiss
import numpy as np
import torch
from tqdm import tqdm

from kernels.reference import nearest_codes
from tokenizer.config import QuantizerSettings
from tokenizer.quantizers.filling import fill_exactly, means
from tokenizer.quantizers.residual import ResidualQuantizer

_START_ITERATIONS = 5
_EVENED_ROWS_PER_CODE = 64


def fit_rq_kmeans(vectors_ND: np.ndarray, settings: QuantizerSettings, seed: int) -> ResidualQuantizer:
    """Codebooks fitted on float vectors (N, D), which may be memory-mapped."""
    sizes = settings.sizes(len(vectors_ND))
    rows = sample_rows(len(vectors_ND), settings.train_rows_per_code * max(sizes), seed)
    residual = torch.from_numpy(np.array(vectors_ND[rows], dtype=np.float32))
    codebooks: list[torch.Tensor] = []
    for level, num_codes in enumerate(tqdm(sizes, desc="k-means levels", leave=False)):
        codebook = fit_kmeans(residual.numpy(), num_codes, settings.iterations, seed + level, settings.evening_fills)
        residual -= codebook[nearest_codes(residual, codebook)]
        codebooks.append(codebook)
    return ResidualQuantizer("rq_kmeans", codebooks, vectors_ND.shape[1], chunk_rows=settings.chunk_rows)


def fit_kmeans(rows_ND: np.ndarray, num_codes: int, iterations: int, seed: int, evening_fills: int = 0) -> torch.Tensor:
    """Centroids of k-means, float32 (K, D); `evening_fills` balanced fills spread the rows evenly in between."""
    if len(rows_ND) <= num_codes or (len(rows_ND) < 4 * num_codes and len(np.unique(rows_ND, axis=0)) <= num_codes):
        distinct = np.unique(rows_ND, axis=0)
        return torch.from_numpy(distinct[np.arange(num_codes) % len(distinct)])
    if evening_fills == 0:
        return _train_faiss(rows_ND, num_codes, iterations, seed, None)
    start_KD = _train_faiss(rows_ND, num_codes, min(iterations, _START_ITERATIONS), seed, None)
    sample = torch.from_numpy(rows_ND[sample_rows(len(rows_ND), _EVENED_ROWS_PER_CODE * num_codes, seed)])
    for _ in range(evening_fills):
        start_KD = means(sample, fill_exactly(sample, start_KD), start_KD)
    return _train_faiss(rows_ND, num_codes, iterations, seed, start_KD.numpy())


def _train_faiss(
    rows_ND: np.ndarray, num_codes: int, iterations: int, seed: int, start_KD: np.ndarray | None
) -> torch.Tensor:
    kmeans = faiss.Kmeans(
        rows_ND.shape[1],
        num_codes,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows_ND),
    )
    kmeans.train(rows_ND, init_centroids=start_KD)
    assert kmeans.centroids is not None
    return torch.from_numpy(kmeans.centroids.copy())


def sample_rows(num_rows: int, max_rows: int, seed: int) -> np.ndarray | slice:
    """Row numbers of a seeded sample in ascending order, or all rows where they are few enough."""
    if num_rows <= max_rows:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(num_rows, max_rows, replace=False))
