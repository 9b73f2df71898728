"""OneRec as a recommender: histories in, ranked items out, by the one beam search.

A history is an array of items or, for a model whose pathways read more, the user's events with what is known of them.

Shapes: B requests, S history length in items, K places of a list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch

from onerec.data.pathways import EventSource, History, events_of, require_wishes
from onerec.decoding.beam import BeamResult, Watch, beam_search, check_list_length
from onerec.decoding.dense_candidates import find_missed
from onerec.decoding.exact import exact_search
from onerec.decoding.new_items import NewItemSlots, join
from onerec.decoding.rescoring import ItemVectors, check_rescoring, head_opinions, rescore
from onerec.decoding.transitions import Transitions, newest_items
from onerec.decoding.trie import Trie
from onerec.evaluation.recommender import Ranking
from onerec.model.context import Context
from onerec.model.onerec import OneRec
from onerec.model.precision import Precision

# Of a score, generously.
_ROUNDING: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.1, "float8": 0.3}
_MAX_REQUESTS = 32  # decoded at a time; more costs memory without being faster on a CPU


class OneRecRecommender:
    """Encodes the newest items of each history and searches with `num_beams` beams, multiplying in `precision`.

    `source` is where an evaluator finds the events that a model with pathways reads beside the items; `rescoring` the
    weight of the item head's opinion of what the search found, see `onerec.decoding.rescoring`; `new_items` keeps
    places of each list for new ones, see `onerec.decoding.new_items`; `dense_candidates` is how many items that the
    search missed the heads propose, see the module of that name, as `transitions` has, what followed what in the log.
    """

    name = "onerec"
    is_whole = True  # in this process: another model can be made of it

    def __init__(
        self,
        model: OneRec,
        trie: Trie,
        num_beams: int,
        precision: Precision = "float32",
        source: EventSource | None = None,
        rescoring: float = 0.0,
        new_items: NewItemSlots | None = None,
        dense_candidates: int = 0,
        transitions: Transitions | None = None,
    ) -> None:
        check_rescoring(model.config, rescoring, dense_candidates)
        self.model = model.for_decoding(precision).eval()
        self.trie = trie.to(model.device)
        self.num_beams = num_beams
        self.precision = precision
        self.source = source
        self.rescoring = rescoring
        self.new_items = new_items
        self.dense_candidates = dense_candidates
        self.transitions = None if transitions is None else transitions.to(model.device)
        self._new_tree: tuple[Trie, Trie | None] | None = None
        with torch.inference_mode():
            vectors_NE = self.model.item_vectors() if rescoring else None
            self._prefix_vectors = self.model.pool_prefix_vectors(vectors_NE)
        self._item_vectors: ItemVectors | None = vectors_NE
        pathways = self.model.encoder.pathways
        self._reader = None if pathways is None else pathways.reader()

    def remade(self, model: OneRec, trie: Trie, precision: Precision = "float32") -> Self:
        """The same in all else for another model, tree or precision; a model for decoding has its precision already."""
        options = (precision, self.source, self.rescoring, self.new_items, self.dense_candidates, self.transitions)
        return type(self)(model, trie, self.num_beams, *options)

    @property
    def num_parameters(self) -> int:
        """Trainable numbers of the model."""
        return self.model.num_parameters()

    def recommend(self, histories: Sequence[History], k: int, exclude_seen: bool) -> Ranking:
        """Return the `k` items of highest probability; `exclude_seen` leaves out every item of the full history.

        Raises:
            ConfigError: `k` exceeds the number of beams.
        """
        items_BK = np.empty((len(histories), k), dtype=np.int32)
        scores_BK = np.empty((len(histories), k), dtype=np.float32)
        for requests in self._like_lengths(histories):
            chosen = [events_of(histories[request]) for request in requests]
            seen = [np.asarray(events.items) for events in chosen] if exclude_seen else None
            ranking = self.search(self.encode(chosen), k, seen)
            items_BK[requests], scores_BK[requests] = ranking.items_BK, ranking.scores_BK
        return Ranking(items_BK=items_BK, scores_BK=scores_BK)

    @torch.inference_mode()
    def encode(self, histories: Sequence[History]) -> Context:
        """Encode the newest readable items of each history, and what the pathways read of it, as one batch."""
        requests = [events_of(history) for history in histories]
        items_BS, lengths_B = self._pad([events.items for events in requests])
        pathways = None
        if self._reader is not None:
            inputs = self._reader.read(requests, lengths_B.cpu().numpy(), items_BS.size(1))
            pathways = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        else:
            require_wishes(requests, known=())
        context = self.model.encode(items_BS, lengths_B, self._prefix_vectors, pathways)
        if self.transitions is None:
            return context
        return replace(context, newest_items_BR=newest_items(items_BS, lengths_B))

    def search(
        self,
        context: Context,
        k: int,
        excluded: Sequence[np.ndarray] | None = None,
        num_beams: int | None = None,
        watch: Watch | None = None,
    ) -> Ranking:
        """Return the `k` items of highest probability for each request of an encoded batch.

        Args:
            excluded: item indices each request may not return, one array a request; None excludes nothing.
            num_beams: prefixes kept a level, where not the recommender's own number.
            watch: is shown the beams of each level, see `beam_search`.

        Raises:
            ConfigError: `k` exceeds the number of beams.
            DataError: an excluded item outside the catalogue.
        """
        beams = num_beams or self.num_beams
        num_found = self._num_found(k, beams)
        found = beam_search(self.model, context, self.trie, beams, num_found, excluded, watch)
        if (tree := self._tree_of_new_items()) is not None:
            found = join(found, beam_search(self.model, context, tree, beams, self._num_new(k, beams), excluded))
        return self._rank(found, context, k, excluded)

    def search_exactly(
        self, context: Context, k: int, excluded: Sequence[np.ndarray] | None = None, num_beams: int | None = None
    ) -> tuple[Ranking, np.ndarray]:
        """Return the provably best `k` items of each request, and how many prefixes were read for it (B,).

        With rescoring, what is proved best by its codes are the `num_beams` items whose order the heads then say, and
        which their candidates join.

        Raises:
            ConfigError: too many prefixes could hold one of them; or as `search`.
            DataError: as `search`.
        """
        beams, rounding = num_beams or self.num_beams, _ROUNDING[self.precision]
        num_found = self._num_found(k, beams)
        result = exact_search(self.model, context, self.trie, beams, num_found, excluded, rounding=rounding)
        found, expansions_B = BeamResult(result.items_BK, result.scores_BK), result.num_expansions_B
        if (tree := self._tree_of_new_items()) is not None:
            new = exact_search(self.model, context, tree, beams, self._num_new(k, beams), excluded, rounding=rounding)
            found = join(found, BeamResult(new.items_BK, new.scores_BK))
            expansions_B = expansions_B + new.num_expansions_B
        return self._rank(found, context, k, excluded), expansions_B.cpu().numpy()

    def _num_found(self, k: int, num_beams: int) -> int:
        """Items to search for: all beams where others have a say in their order."""
        check_list_length(k, num_beams)
        return k if self.transitions is None and not self.rescoring else num_beams

    def _num_new(self, k: int, num_beams: int) -> int:
        """New items to search for: as many as places are kept, or all beams as above."""
        assert self.new_items is not None
        return self._num_found(min(self.new_items.count, k), num_beams)

    def _tree_of_new_items(self) -> Trie | None:
        """The tree of the new items among those that may be returned now; None without any, or without places."""
        if self.new_items is None:
            return None
        if self._new_tree is None or self._new_tree[0] is not self.trie:
            self._new_tree = self.trie, self.new_items.tree_of(self.trie)
        return self._new_tree[1]

    def _rank(
        self, found: BeamResult, context: Context, k: int, excluded: Sequence[np.ndarray] | None = None
    ) -> Ranking:
        if self.dense_candidates:
            assert isinstance(self._item_vectors, torch.Tensor)
            vectors_NE, count = self._item_vectors, self.dense_candidates
            found = join(found, find_missed(found, self.model, context, vectors_NE, self.trie, count, excluded))
        if opinions := self._opinions(found, context):
            found = rescore(found, opinions)
        if self.new_items is not None:
            found = self.new_items.keep(found, k)
        return Ranking(found.items_BK[:, :k].to("cpu", torch.int32).numpy(), found.scores_BK[:, :k].cpu().numpy())

    def _opinions(self, found: BeamResult, context: Context) -> list[tuple[float, torch.Tensor]]:
        """What else is thought of the items found: weights and logits (B, W)."""
        opinions: list[tuple[float, torch.Tensor]] = []
        if self._item_vectors is not None:
            logits = head_opinions(found, self.model, context, self._item_vectors)
            opinions += [(self.rescoring, logits_BW) for logits_BW in logits]
        if self.transitions is not None:
            assert context.newest_items_BR is not None
            logits_BW = self.transitions.opinion(context.newest_items_BR, found.items_BK)
            opinions.append((self.transitions.weight, logits_BW))
        return opinions

    def _like_lengths(self, histories: Sequence[History]) -> Iterator[np.ndarray]:
        """Request numbers in groups of similar history length, so that little is padded."""
        order = np.argsort([len(history) for history in histories], kind="stable")
        for first in range(0, len(order), _MAX_REQUESTS):
            yield order[first : first + _MAX_REQUESTS]

    def _pad(self, histories: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """The newest readable items, right-padded (B, S), and their number (B,)."""
        recent = [history[-self.model.config.max_history_items :] for history in histories]
        lengths = np.array([len(items) for items in recent])
        items_BS = np.zeros((len(recent), max(int(lengths.max()), 1)), dtype=np.int64)
        items_BS[np.arange(items_BS.shape[1]) < lengths[:, None]] = np.concatenate(recent)
        device = self.model.device
        return torch.from_numpy(items_BS).to(device), torch.from_numpy(lengths).to(device)
