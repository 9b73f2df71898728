"""Vectors of the catalogue's prefixes, so that a code's logit knows which items lie below it.

A code means something else after each prefix, and a linear head over hidden states has one row a code whatever the
prefix: the item head, which has a vector for each item, ranks better than such a decoder learns to (measured on
Amazon-2014 Beauty). Here a child of a prefix has a vector too, the mean of the vectors of the items below it, and its
logit gains the product with a query made of the decoder's state. Only the children of the prefixes that are being
extended are read: the cost follows the branching of the tree, not the catalogue. Tree-based deep models (Zhu et al.
2018, arXiv 1801.02294) give nodes vectors of their own; the mean needs no further weights and covers new items.

Shapes: N items, L levels, n nodes of a level, E width of item vectors, R prefixes, C children of all of them, K codes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kernels.sampled_products import sampled_products
from onerec.model.configuration import OneRecConfig


class PrefixTree:
    """The prefixes that items have, level by level; built once from the ID table.

    A prefix is one number: its codes read as digits, the first one highest, 0 for the empty prefix. The nodes of level
    l are the prefixes of l + 1 codes in ascending order, so that the children of one prefix are neighbours.
    """

    def __init__(self, codes_NL: np.ndarray, codes_per_level: list[int], device: torch.device) -> None:
        self.num_items, self.codes_per_level = len(codes_NL), codes_per_level
        self.nodes: list[Tensor] = []  # of each level, ascending (n,)
        self._node_of_item: list[Tensor] = []  # of each level (N,)
        prefixes_N = np.zeros(len(codes_NL), dtype=np.int64)
        for codes_N, num_codes in zip(codes_NL.T, codes_per_level, strict=True):
            prefixes_N = prefixes_N * num_codes + codes_N
            nodes_n, node_of_item_N = np.unique(prefixes_N, return_inverse=True)
            self.nodes.append(torch.from_numpy(nodes_n).to(device))
            self._node_of_item.append(torch.from_numpy(node_of_item_N).to(device))
        self._num_items = [torch.bincount(node_of_item_N).float() for node_of_item_N in self._node_of_item]
        shares = [1 / count_n[node_N] for count_n, node_N in zip(self._num_items, self._node_of_item, strict=True)]
        self.share_of_item_NL = torch.stack(shares, dim=1)  # what part of its node an item is

    def pool(self, item_vectors_NE: Tensor) -> "PrefixVectors":
        """Give each node the mean of the vectors of the items below it."""
        pooled = []
        for node_of_item_N, num_items_n in zip(self._node_of_item, self._num_items, strict=True):
            sums_nE = item_vectors_NE.new_zeros(len(num_items_n), item_vectors_NE.size(1))
            pooled.append(sums_nE.index_add(0, node_of_item_N, item_vectors_NE) / num_items_n[:, None])
        return PrefixVectors(self, tuple(pooled))

    def children(self, prefixes_R: Tensor, level: int) -> "Children":
        """The nodes of `level` below each prefix of `level` codes; none below a prefix that no item has."""
        nodes_n, num_codes = self.nodes[level], self.codes_per_level[level]
        first_R = torch.searchsorted(nodes_n, prefixes_R * num_codes)
        count_R = torch.searchsorted(nodes_n, (prefixes_R + 1) * num_codes) - first_R
        owners_C = torch.repeat_interleave(count_R)
        skipped_R = first_R - (count_R.cumsum(0) - count_R)
        rows_C = torch.arange(len(owners_C), device=owners_C.device) + skipped_R[owners_C]
        return Children(count_R, owners_C, rows_C, nodes_n[rows_C] - prefixes_R[owners_C] * num_codes)


@dataclass(frozen=True)
class Children:
    """Nodes below some prefixes, prefix by prefix: whose child, which row among the nodes of its level, which code."""

    count_R: Tensor
    owners_C: Tensor
    rows_C: Tensor
    codes_C: Tensor


@dataclass(frozen=True)
class PrefixVectors:
    """A tree and the vectors (n, E) of its nodes, level by level."""

    tree: PrefixTree
    levels: tuple[Tensor, ...]


class PrefixHeads(nn.Module):
    """For each level, a term of the logits of prefixes' children, by their vectors; none for codes without items."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.codes_per_level = config.codes_per_level
        self.queries = nn.ModuleList(
            nn.Linear(config.d_model, config.embedding_dim, bias=False) for _ in config.codes_per_level
        )

    def forward(self, logits: Tensor, states: Tensor, level: int, prefixes: Tensor, vectors: PrefixVectors) -> Tensor:
        """Add to logits (..., K), in place, what states (..., D) say that have read prefixes (...) of `level` codes."""
        queries = self.queries[level](states)
        tree, vectors_nE = vectors.tree, vectors.levels[level]
        if level == 0:  # one prefix has all children
            products = torch.matmul(queries, vectors_nE.to(queries.dtype).T).float()
            return logits.index_add_(-1, tree.nodes[0], products)
        children = tree.children(prefixes.flatten(), level)
        products_C = sampled_products(queries.flatten(0, -2), vectors_nE, children.count_R, children.rows_C)
        places_C = children.owners_C * self.codes_per_level[level] + children.codes_C
        return logits.view(-1).index_add_(0, places_C, products_C).view_as(logits)
