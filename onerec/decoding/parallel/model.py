"""A model of which every process holds a share, with the calls of a whole one.

Shapes: B requests, S history items, N items, M of them in the share, E width of item vectors, L levels, n first codes.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from kernels.folded_attention import FoldedContext
from onerec.decoding.parallel.blocks import check_divisible, cut_blocks
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.parallel.share import Share
from onerec.errors import ConfigError
from onerec.model.context import Context, ItemEmbedding
from onerec.model.decoder import DecoderCache
from onerec.model.layers import CrossAttention
from onerec.model.onerec import OneRec
from onerec.model.prefixes import PrefixTree, PrefixVectors


class SharedTable(nn.Embedding):
    """A table of items, each looked up by the process that holds it."""

    def __init__(self, whole: nn.Embedding, share: Share) -> None:
        rows_ME = whole.weight.data[share.items_M.to(whole.weight.device)]
        super().__init__(rows_ME.size(0), rows_ME.size(1), _weight=rows_ME)
        self.share = share

    def forward(self, items: Tensor) -> Tensor:
        """Item indices (...), the same for all processes -> (..., E)."""
        return self.share.look_up(items, self.weight)


class SharedItemEmbedding(ItemEmbedding):
    """What items are made of in the context, each by the process that holds it."""

    def __init__(self, whole: ItemEmbedding, share: Share) -> None:
        nn.Module.__init__(self)  # the parts are the whole one's own
        self.share = share
        self.codes, self.items, self.pieces = whole.codes, whole.items, whole.pieces
        own_M = share.items_M.to(whole.codes.weight.device)
        if self.items is not None:
            self.items = nn.Embedding.from_pretrained(self.items.weight.data[own_M])
        if self.pieces is not None:
            self.register_buffer("piece_rows_NL", whole.piece_rows_NL[own_M])

    def forward(self, items: Tensor, code_rows_ML: Tensor) -> Tensor:
        """Item indices (...), the same for all processes -> (..., E)."""
        rows, own = self.share.rows_of(items)
        return self.share.processes.sum(super().forward(rows, code_rows_ML).masked_fill(~own[..., None], 0))

    def of_share(self, code_rows_ML: Tensor) -> Tensor:
        """The vectors (M, E) of the share's own items."""
        return super().forward(torch.arange(len(code_rows_ML), device=code_rows_ML.device), code_rows_ML)


class UnfoldedCache(DecoderCache):
    """Never folds a context: DeepSpeed sums products of a projection, which the folded form has not."""

    def fold(self, layer: int, attention: CrossAttention, context: Context, num_beams: int) -> FoldedContext | None:
        """None."""
        return None


class SharedOneRec(OneRec):
    """This process's part of a model; all processes make each call together, with the same arguments.

    Args:
        model: is cut, and of no further use by itself; all processes give the same one.

    Raises:
        ConfigError: the model does not divide by the processes, or DeepSpeed is not installed.
    """

    def __init__(self, model: OneRec, processes: Processes) -> None:
        vars(self).update(vars(model))  # every part is the model's own
        check_divisible(model.config, processes.number)
        if model.decoder.compiled:
            raise ConfigError("compile: found true for several processes, expected false. Compile with one process.")
        codes_NL = model.codes_of(torch.arange(model.config.num_items, device=model.device))
        self.share = Share.of(codes_NL[:, 0], model.config.codes_per_level[0], processes)
        own_M = self.share.items_M.to(model.device)
        self._first_codes_n = codes_NL[:, 0].unique().to(processes.device)
        cut_blocks(self, processes)
        self.encoder.embedding = SharedItemEmbedding(self.encoder.embedding, self.share)
        self.encoder.code_rows_NL = self.encoder.code_rows_NL[own_M]
        for head in self.id_heads:
            head.network.items = SharedTable(head.network.items, self.share)
        self._tree = None
        for part in self.children():
            part.to(processes.device)

    def new_cache(self) -> DecoderCache:
        """As for a whole model."""
        return UnfoldedCache(self.config.num_decoder_layers)

    def codes_of(self, items: Tensor) -> Tensor:
        """As for a whole model."""
        return self.share.look_up(items, self.encoder.code_rows_NL) - self._first_rows()

    def item_vectors(self) -> Tensor:
        """The vectors (M, E) of the share's own items."""
        embedding = self.encoder.embedding
        assert isinstance(embedding, SharedItemEmbedding)
        return embedding.of_share(self.encoder.code_rows_NL)

    def pool_prefix_vectors(self, vectors_NE: Tensor | None = None) -> PrefixVectors | None:
        """The mean vectors of the prefixes in the share, of which all processes get those of first codes.

        `vectors_NE` are those of `item_vectors`.
        """
        pooled = super().pool_prefix_vectors(vectors_NE)
        if pooled is None:
            return None
        own_nE = pooled.levels[0]
        first_nE = own_nE.new_zeros(len(self._first_codes_n), own_nE.size(1))
        own_first_n = self.encoder.code_rows_NL[:, 0].unique()  # the first level's rows are its codes
        first_nE[torch.searchsorted(self._first_codes_n, own_first_n)] = own_nE
        return replace(pooled, levels=(self.share.processes.sum(first_nE), *pooled.levels[1:]))

    def _prefix_tree(self) -> PrefixTree:
        """Of the prefixes in the share, and of all first codes."""
        if self._tree is None:
            codes_ML = (self.encoder.code_rows_NL - self._first_rows()).cpu().numpy()
            self._tree = PrefixTree(codes_ML, self.config.codes_per_level, self.device)
            self._tree.nodes[0] = self._first_codes_n
        return self._tree

    def _first_rows(self) -> Tensor:
        return torch.tensor(self.decoder.first_rows, device=self.encoder.code_rows_NL.device)

    def _shares_of(self, items: Tensor) -> Tensor:
        """As for a whole model."""
        return self.share.look_up(items, self._prefix_tree().share_of_item_NL)
