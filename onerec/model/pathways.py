"""The context's pathways beside the plain short-term items (technical report, arXiv 2506.13695, section 2.2).

The static pathway adds to the start position. The positive and the lifelong pathway stand before it, as positions of
older events that all later ones see; `onerec.data.pathways` says which events they read. The short-term pathway adds
its features to the history's items.

Departures:
1. An item's own vector is added to what the two dense layers make of it and its features.
2. The static pathway adds to a learnt start vector, from which a history's first item is predicted.
3. The short-term items have positions by their own table, the positive events by another, the newest first; what the
   lifelong queries have read has no order.

Shapes: B batch, S short-term items, P positive events, R representatives, C positions of older events, D width
(`embedding_dim`), F categories of an item, E numbers of an event, U static features, N items, V width of the vectors
that cluster.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from onerec.data.features import FittedPathways
from onerec.data.pathway_settings import EventSettings, PathwaySpec
from onerec.data.pathways import PathwayReader
from onerec.errors import ArtifactError
from onerec.model.configuration import OneRecConfig
from onerec.model.features import EventFeatures, Mixer, ReturnVectors, category_tables
from onerec.model.lifelong import QueryReader
from onerec.model.target_loss import states_before_targets

_LEAST_WIDTH = 8
Embed = Callable[[Tensor], Tensor]  # item indices (B, S) -> vectors (B, S, D)


class ContextPathways(nn.Module):
    """What the configured pathways add to a context; buffers hold the items' categories and vectors."""

    item_keys_NF: Tensor
    vectors_NV: Tensor

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.spec = spec = PathwaySpec.model_validate(config.pathways)
        settings, tables, dim = spec.settings, spec.settings.tables, config.embedding_dim
        width = tables.width or max(config.d_model // 8, _LEAST_WIDTH)
        static_width = tables.static_width or max(config.d_model // 16, _LEAST_WIDTH)
        keys_NF = torch.zeros(config.num_items, len(spec.categories), dtype=torch.int64)
        self.register_buffer("item_keys_NF", keys_NF)
        self.register_buffer("vectors_NV", torch.zeros(config.num_items, spec.vector_width))
        self.category_tables = category_tables(spec.categories, tables.num_hashes, width)
        self.static_tables = category_tables(spec.static, tables.num_hashes, static_width)
        self.static_mixer = Mixer(len(spec.static) * static_width, dim) if spec.static else None

        def features_of(pathway: EventSettings | None) -> EventFeatures | None:
            return None if pathway is None else EventFeatures(spec, pathway.features, dim, width)

        self.short_term = features_of(settings.short_term)
        self.positive = features_of(settings.positive)
        self.lifelong = features_of(settings.lifelong)
        self.positive_positions = nn.Embedding(settings.positive.length, dim) if settings.positive else None
        self.returns = ReturnVectors(spec, config.d_model, width) if spec.returns else None
        self.lifelong_queries: QueryReader | None = None
        if settings.lifelong is not None:
            self.lifelong_queries = QueryReader(config, settings.lifelong.num_queries, settings.lifelong.num_blocks)

    def set_fitted(self, fitted: FittedPathways) -> None:
        """Store what was fitted on the training data.

        Raises:
            ArtifactError: it was fitted for another specification or catalogue.
        """
        if fitted.spec != self.spec or fitted.item_keys_NF.shape != self.item_keys_NF.shape:
            raise ArtifactError(
                f"pathways: found features of {len(fitted.item_keys_NF)} items, expected those of "
                f"{len(self.item_keys_NF)} items with the model's own specification. Fit them on the model's data."
            )
        self.item_keys_NF.copy_(torch.from_numpy(fitted.item_keys_NF))
        self.vectors_NV.copy_(torch.from_numpy(fitted.vectors_NV))
        own_keys = (*fitted.own_categories, *fitted.own_static)
        for table, keys in zip([*self.category_tables, *self.static_tables], own_keys, strict=True):
            table.own_keys.copy_(torch.from_numpy(keys))

    def reader(self) -> PathwayReader:
        """What turns users' events into this model's inputs."""
        return PathwayReader(self.spec, self.vectors_NV.cpu().numpy())

    def add_returns(self, states_BPD: Tensor, mask_BS: Tensor, inputs: dict[str, Tensor] | None) -> Tensor:
        """The context states before P targets with what their returns are to be."""
        if self.returns is None:
            return states_BPD
        if inputs is None:
            return states_BPD + self.returns.nothing()
        returns_BWD = self.returns(inputs["returns"])
        if returns_BWD.size(1) > 1:  # of all positions from the start on
            returns_BWD = states_before_targets(returns_BWD, mask_BS[:, -returns_BWD.size(1) :], states_BPD.size(1))
        return states_BPD + returns_BWD

    def add_static(self, start_B1D: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The start's vectors with what the users' static features say."""
        if self.static_mixer is None:
            return start_B1D
        keys_BU = inputs["static_keys"]
        parts = [table(keys_BU[:, place]) for place, table in enumerate(self.static_tables)]
        return start_B1D + self.static_mixer(torch.cat(parts, dim=-1))[:, None]

    def add_features(self, items_BSD: Tensor, items_BS: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The short-term items' vectors with what their features say."""
        if self.short_term is None:
            return items_BSD
        return self.short_term(items_BSD, self.item_keys_NF[items_BS], inputs["event_values"], self.category_tables)

    def older(self, embed: Embed, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Positions (B, C, D) in parts that stand before the start: the lifelong queries, then the positive events."""
        parts = []
        if self.lifelong is not None and self.lifelong_queries is not None:
            read_BRD = self._events("lifelong", self.lifelong, embed, inputs)
            parts.append(self.lifelong_queries(read_BRD, inputs["lifelong_items"] != 0))
        if self.positive is not None and self.positive_positions is not None:
            real_BP = inputs["positive_items"] != 0
            places_BP = real_BP.flip(1).cumsum(1).flip(1).sub(1).clamp(min=0)  # 0 for the newest
            parts.append(self._events("positive", self.positive, embed, inputs) + self.positive_positions(places_BP))
        return parts

    def real_older(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Which of those positions (B, C) hold something."""
        parts = []
        if self.lifelong_queries is not None:
            any_B1 = (inputs["lifelong_items"] != 0).any(dim=1, keepdim=True)
            parts.append(any_B1.expand(-1, self.lifelong_queries.queries.num_embeddings))
        if self.positive is not None:
            parts.append(inputs["positive_items"] != 0)
        return parts

    def _events(self, name: str, features: EventFeatures, embed: Embed, inputs: dict[str, Tensor]) -> Tensor:
        items = (inputs[f"{name}_items"] - 1).clamp(min=0)
        return features(embed(items), self.item_keys_NF[items], inputs[f"{name}_values"], self.category_tables)
