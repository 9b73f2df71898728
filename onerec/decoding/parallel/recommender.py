"""OneRec as a recommender, by several processes: the first is asked, and the others do what it does.

The leader tells each batch that it encodes, and each search in the batch it encoded last. It may search any part of its
own catalogue, as filters and removed items make them: the others are told once which items a tree has, all restrict
their subtrees to them, which takes a time that grows with the share, and keep the newest. Calls come from one thread.
Where a call fails, the processes are out of step: the leader leaves the others, and all end.

Shapes: as in `onerec.decoding.recommender`; N items of the catalogue.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from onerec.data.pathways import History
from onerec.decoding.beam import Watch, check_list_length
from onerec.decoding.new_items import join
from onerec.decoding.parallel.model import SharedOneRec
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.parallel.search import search_together
from onerec.decoding.parallel.share import SharedRows
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.evaluation.recommender import Ranking
from onerec.model.context import Context

_MAX_TREES = 16  # whose subtrees are kept, the newest


@dataclass(frozen=True)
class _Part:
    """This process's items of a tree, and the new ones of these; None where there are none."""

    all: Trie | None
    new: Trie | None


class ParallelRecommender(OneRecRecommender):
    """Answers as the recommender it is made of, to be made by all processes together.

    Args:
        recommender: is cut, and of no further use by itself; all processes give the same one.

    Raises:
        ConfigError: it cannot be shared out to so many processes.
    """

    is_whole = False

    def __init__(self, recommender: OneRecRecommender, processes: Processes) -> None:
        if recommender.precision not in ("float32", "bfloat16"):
            raise ConfigError(
                f"decoding.precision: found {recommender.precision} for several processes, expected float32 or "
                "bfloat16. Evaluate and bundle the model with one of these."
            )
        self.processes = processes
        if recommender.dense_candidates:
            raise ConfigError(
                f"decoding.dense_candidates: found {recommender.dense_candidates} for several processes, expected 0: "
                "none has the vectors of all items. Evaluate and bundle the model with 0."
            )
        model = SharedOneRec(recommender.model, processes)
        super().__init__(  # a model for decoding has its precision already
            model,
            recommender.trie,
            recommender.num_beams,
            source=recommender.source,
            rescoring=recommender.rescoring,
            new_items=recommender.new_items,
            transitions=recommender.transitions,
        )
        self.precision = recommender.precision
        self.trie = recommender.trie  # the leader's, to be restricted; it is not searched
        self.subtree = model.share.subtree(recommender.trie).to(processes.device)
        self._parts: dict[int, _Part] = {}  # by the number of their tree, of the same trees in all processes
        self._numbers = itertools.count()
        self._numbered: tuple[Trie, int] | None = None
        if isinstance(self._item_vectors, torch.Tensor):
            self._item_vectors = SharedRows(model.share, self._item_vectors)

    def encode(self, histories: Sequence[History]) -> Context:
        """As one process does; the others follow."""
        with self._with_others("encode", histories):
            return super().encode(histories)

    def search(
        self,
        context: Context,
        k: int,
        excluded: Sequence[np.ndarray] | None = None,
        num_beams: int | None = None,
        watch: Watch | None = None,
    ) -> Ranking:
        """As one process does, in the batch that was encoded last; the others follow."""
        beams = num_beams or self.num_beams
        check_list_length(k, beams)
        number, has_new = self._number_of_tree(), self._tree_of_new_items() is not None
        items = None if number in self._parts else _items_of(self.trie)
        with self._with_others("search", number, items, has_new, k, excluded, beams):
            return self._search(context, number, items, has_new, k, excluded, beams, watch)

    def search_exactly(
        self, context: Context, k: int, excluded: Sequence[np.ndarray] | None = None, num_beams: int | None = None
    ) -> NoReturn:
        """Not by several processes.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("found a model that several processes share, expected a whole one. Ask one process.")

    def follow(self) -> None:
        """Do what the leader does, until it dismisses this process or has gone."""
        context: Context | None = None
        while (message := self.processes.hear()) is not None:
            call, *arguments = message
            if call == "encode":
                context = super().encode(*arguments)
            else:
                assert context is not None
                self._search(context, *arguments)

    def _search(
        self,
        context: Context,
        number: int,
        items: np.ndarray | None,
        has_new: bool,
        k: int,
        excluded: Sequence[np.ndarray] | None,
        beams: int,
        watch: Watch | None = None,
    ) -> Ranking:
        """All processes together: `items` are those of a tree whose number is new, as `_items_of` packs them."""
        assert isinstance(self.model, SharedOneRec)
        if items is not None:
            self._parts[number] = self._part(np.unpackbits(items, count=self.subtree.num_items).astype(bool))
            if len(self._parts) > _MAX_TREES:
                del self._parts[next(iter(self._parts))]
        part = self._parts[number]
        found = search_together(self.model, context, part.all, beams, self._num_found(k, beams), excluded, watch)
        if has_new:
            num_new = self._num_new(k, beams)
            found = join(found, search_together(self.model, context, part.new, beams, num_new, excluded))
        return self._rank(found, context, k)

    def _part(self, allowed_N: np.ndarray) -> "_Part":
        own_M = self.subtree.items_of(torch.arange(self.subtree.num_leaves, device=self.subtree.device))
        if not allowed_N[own_M.cpu().numpy()].any():
            return _Part(None, None)
        tree = self.subtree.restrict(allowed_N)
        return _Part(tree, None if self.new_items is None else self.new_items.tree_of(tree))

    def _number_of_tree(self) -> int:
        """The leader's: what the tree of now is called. Copies for other trees share all but that."""
        if self._numbered is None or self._numbered[0] is not self.trie:
            self._numbered = self.trie, next(self._numbers)
        return self._numbered[1]

    @contextmanager
    def _with_others(self, *message: object) -> Iterator[None]:
        self.processes.tell(message)
        try:
            yield
        except BaseException:
            self.processes.leave()
            raise


def _items_of(trie: Trie) -> np.ndarray:
    """Which items (N,) a tree has, eight a byte."""
    ranks_N = trie.ranks_of(torch.arange(trie.num_items, device=trie.device))
    return np.packbits((ranks_N >= 0).cpu().numpy())
