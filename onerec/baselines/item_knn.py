"""Item k-nearest neighbours: cosine similarity of items over the users who touched them.

    similarity(i, j) = |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrinkage)

(Sarwar et al., WWW 2001, with the shrinkage of Bell and Koren, ICDM 2007: agreement on few users counts for less.) Only
the `num_neighbors` most similar items of each item are kept. A candidate's score is the sum of its similarities to the
history's items, each weighted by half for every `half_life_items` places that it lies back.

Shapes: B requests, U users, N items.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import Field
from scipy import sparse
from tqdm import tqdm

from onerec.baselines.scoring import rank_scores
from onerec.data.histories import Histories
from onerec.evaluation.recommender import Ranking
from onerec.sparse_rows import largest_of_rows
from tokenizer.settings import Settings

_ITEMS_AT_A_TIME = 1024


class ItemKnnSettings(Settings):
    """How similar items are, and how far back a history counts."""

    num_neighbors: int = Field(200, ge=1, description="Most similar items kept for each item.")
    shrinkage: float = Field(20.0, ge=0, description="Added to the denominator of the cosine, in users.")
    half_life_items: float = Field(1.0, gt=0, description="Places back in a history that halve an item's weight.")
    max_history_items: int = Field(50, ge=1, description="Latest items of a history that count.")


class ItemKnn:
    """Sums the similarities of every item to the items of a history, later ones weighing more."""

    name = "item_knn"

    def __init__(self, similarities_NN: sparse.csr_array, settings: ItemKnnSettings) -> None:
        self.similarities_NN = similarities_NN
        self.settings = settings

    @classmethod
    def fit(cls, histories: Histories, num_items: int, settings: ItemKnnSettings, show_progress: bool = True) -> Self:
        """Compute each item's nearest neighbours from the training events."""
        training = histories.training()
        users = training.users_of(np.arange(training.num_events))
        touched_UN = sparse.csr_array(
            (np.ones(training.num_events, dtype=np.float32), (users, np.asarray(training.items))),
            shape=(training.num_users, num_items),
        )
        touched_UN.sum_duplicates()
        touched_UN.data[:] = 1.0
        roots_N = np.sqrt(np.asarray(touched_UN.sum(axis=0)).ravel())
        touched_NU = touched_UN.T.tocsr()
        blocks = []
        starts = range(0, num_items, _ITEMS_AT_A_TIME)
        for start in tqdm(starts, desc="item_knn neighbours", unit="block", disable=not show_progress):
            together = (touched_NU[start : start + _ITEMS_AT_A_TIME] @ touched_UN).tocoo()
            rows, columns = together.coords
            different = rows + start != columns
            rows, columns, counts = rows[different], columns[different], together.data[different]
            similarities = counts / (roots_N[rows + start] * roots_N[columns] + settings.shrinkage)
            kept = largest_of_rows(rows, columns, similarities, settings.num_neighbors)
            blocks.append(
                sparse.csr_array(
                    (similarities[kept], (rows[kept], columns[kept])), shape=(together.shape[0], num_items)
                )
            )
        return cls(sparse.vstack(blocks, format="csr").astype(np.float32), settings)

    @property
    def num_parameters(self) -> int:
        return self.similarities_NN.nnz

    def recommend(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
        recent = [history[-self.settings.max_history_items :] for history in histories]
        lengths = np.array([len(history) for history in recent])
        rows = np.repeat(np.arange(len(recent)), lengths)
        places_back = np.concatenate([np.arange(length)[::-1] for length in lengths])
        weights_BN = sparse.csr_array(
            (0.5 ** (places_back / self.settings.half_life_items), (rows, np.concatenate(recent))),
            shape=(len(recent), self.similarities_NN.shape[0]),
            dtype=np.float32,
        )
        return rank_scores((weights_BN @ self.similarities_NN).toarray(), histories, k, exclude_seen)
