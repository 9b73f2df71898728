"""Items' own vectors that start as the tokenizer's instead of at random: what is alike starts alike.

The rows of an item table learn from the events of their item alone, most of which are few. The tokenizer has seen texts
(and whatever else it was given), of which the codes keep a few digits; started from the rest, items are near their kin
before the first step. (LLM2Rec, arXiv 2506.21579, shows what sequence models gain from an encoder's vectors.)

The vectors lose their mean, then all but their strongest directions, as many as the table is wide; a random rotation
shares the variance out over the table's columns, and one factor gives them the wanted size.

Shapes: N items, V width of the tokenizer's vectors, E width of the item table.
"""

import numpy as np
import torch
from torch import nn

from onerec.errors import ArtifactError

_ROWS = 2**16  # read at a time


@torch.no_grad()
def start_items(table: nn.Embedding, vectors_NV: np.ndarray, size: float, seed: int) -> None:
    """Fill the item table with the tokenizer's vectors, reduced to its width and scaled.

    Args:
        vectors_NV: of all items, in memory or mapped.
        size: root mean square of the table's numbers.
        seed: of the rotation.

    Raises:
        ArtifactError: vectors of another number of items, or all alike.
    """
    if len(vectors_NV) != table.num_embeddings:
        raise ArtifactError(
            f"item vectors: found {len(vectors_NV)}, the model has {table.num_embeddings} items. "
            "Start from the vectors of the model's own tokenizer."
        )
    mean_V, directions_VE = _strongest_directions(vectors_NV, table.embedding_dim)
    turned_VE = directions_VE @ _rotation(table.embedding_dim, seed)[: directions_VE.shape[1]]
    for first in range(0, len(vectors_NV), _ROWS):
        rows = slice(first, first + _ROWS)
        table.weight[rows] = torch.from_numpy((vectors_NV[rows] - mean_V) @ turned_VE).to(table.weight)
    root_mean_square = float(table.weight.double().square().mean().sqrt())
    if not root_mean_square > 0:
        raise ArtifactError(
            "item vectors: found the same for every item, expected them to differ. Set model.item_start to 0."
        )
    table.weight.mul_(size / root_mean_square)


def _strongest_directions(vectors_NV: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (V,) and, as columns (V, at most `count`), the directions of the largest variance."""
    width = vectors_NV.shape[1]
    sums_V, products_VV = np.zeros(width), np.zeros((width, width))
    for first in range(0, len(vectors_NV), _ROWS):
        part_nV = vectors_NV[first : first + _ROWS].astype(np.float64)
        sums_V += part_nV.sum(axis=0)
        products_VV += part_nV.T @ part_nV
    mean_V = sums_V / len(vectors_NV)
    covariance_VV = products_VV / len(vectors_NV) - np.outer(mean_V, mean_V)
    return mean_V, np.linalg.eigh(covariance_VV).eigenvectors[:, ::-1][:, :count]


def _rotation(width: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width))).Q
