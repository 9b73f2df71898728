"""Vectors of feature values, and the two dense layers that mix them into one context position.

Shapes: B batch, S positions, D width (`embedding_dim`), F categories of an item, E numbers of an event.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onerec.data.pathway_settings import CategorySpec, NumberSpec, PathwaySpec
from onerec.model.hashed_embedding import HashedEmbedding, ValueTable


class ZeroLinear(nn.Linear):
    """A linear map that starts as zero."""

    def start(self) -> None:
        """Forget everything."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class NumberEmbedding(nn.Module):
    """Numbers to the vectors of their buckets; one that is missing (NaN) is zero until training has met such."""

    edges: Tensor

    def __init__(self, spec: NumberSpec, width: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(spec.edges, dtype=torch.float32))
        self.buckets = ValueTable(1 + len(spec.edges) + 1, width, num_blank=1)

    def forward(self, values: Tensor) -> Tensor:
        """(...) -> (..., width); an edge belongs to the bucket above it."""
        buckets = 1 + torch.bucketize(values.contiguous(), self.edges, right=True)
        return self.buckets(torch.where(values.isnan(), 0, buckets))


class Mixer(nn.Module):
    """Two dense layers with LeakyReLU between; a new one answers zero, so that a model starts as without features."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(in_width, width)
        self.output = ZeroLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., D)."""
        return self.output(F.leaky_relu(self.inner(x)))


class EventFeatures(nn.Module):
    """The vectors of a pathway's events: the items' own, plus what their features say of them.

    The tables of categories are handed in, since pathways share them.
    """

    def __init__(self, spec: PathwaySpec, features: Sequence[str], embedding_dim: int, width: int) -> None:
        super().__init__()
        self.categories = [place for place, feature in enumerate(spec.categories) if feature.name in features]
        self.columns = [place for place, feature in enumerate(spec.numbers) if feature.name in features]
        self.numbers = nn.ModuleList(NumberEmbedding(spec.numbers[place], width) for place in self.columns)
        num_features = len(self.categories) + len(self.columns)
        self.mixer = Mixer(embedding_dim + num_features * width, embedding_dim) if num_features else None

    def forward(self, items_BSD: Tensor, keys_BSF: Tensor, values_BSE: Tensor, tables: nn.ModuleList) -> Tensor:
        """Items' vectors, keys of their categories and numbers of the events -> (B, S, D)."""
        if self.mixer is None:
            return items_BSD
        of_items = [tables[place](keys_BSF[..., place]) for place in self.categories]
        of_events = [table(values_BSE[..., column]) for table, column in zip(self.numbers, self.columns, strict=True)]
        return items_BSD + self.mixer(torch.cat([items_BSD, *of_items, *of_events], dim=-1))


class ReturnVectors(nn.Module):
    """Wished-for returns to vectors; in training some are withheld, so that nothing need be wished."""

    def __init__(self, spec: PathwaySpec, width: int, number_width: int) -> None:
        super().__init__()
        settings = spec.settings.returns
        assert settings is not None
        self.unknown_share = settings.unknown_share
        self.numbers = nn.ModuleList(NumberEmbedding(number, number_width) for number in spec.returns)
        self.mixer = Mixer(len(spec.returns) * number_width, width)

    def forward(self, returns_BPJ: Tensor) -> Tensor:
        """Returns (B, P, J), NaN where nothing is wished -> (B, P, D)."""
        if self.training and self.unknown_share:
            withheld = torch.rand(returns_BPJ.shape, device=returns_BPJ.device) < self.unknown_share
            returns_BPJ = returns_BPJ.masked_fill(withheld, float("nan"))
        parts = [table(returns_BPJ[..., column]) for column, table in enumerate(self.numbers)]
        return self.mixer(torch.cat(parts, dim=-1))

    def nothing(self) -> Tensor:
        """The vector (1, 1, D) of no wish at all."""
        weight = self.mixer.output.weight
        return self(torch.full((1, 1, len(self.numbers)), float("nan"), dtype=weight.dtype, device=weight.device))


def category_tables(specs: Sequence[CategorySpec], num_hashes: int, width: int) -> nn.ModuleList:
    """One table a category."""
    return nn.ModuleList(HashedEmbedding(spec.num_own, spec.num_shared, num_hashes, width) for spec in specs)
