"""Encoded histories that are kept for who asks again, as a user does who turns a page.

A history is known by its items, not by its user: after a new event it is another one, and nothing need be invalidated.
Of a model with pathways nothing is kept, whose contexts also depend on times, on the user and on what is wished for.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from onerec.data.pathways import History, events_of
from onerec.decoding.context_rows import num_bytes, put_together, take_apart
from onerec.decoding.recommender import OneRecRecommender
from onerec.model.context import Context
from onerec.model.onerec import OneRec


class ContextCache:
    """The contexts that were read last, of one model; for one thread at a time.

    Args:
        max_bytes: of all of them; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_found = 0
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._model: OneRec | None = None
        self._contexts: OrderedDict[bytes, Context] = OrderedDict()  # the one that was read last stands last

    def encode(self, recommender: OneRecRecommender, histories: Sequence[History]) -> Context:
        """As the recommender does; of histories that were encoded before what is kept, but for rounding the same."""
        model = recommender.model
        if not self._max_bytes or not recommender.is_whole or model.encoder.pathways is not None:
            return recommender.encode(histories)
        if model is not self._model:
            self._model, self._num_bytes = model, 0
            self._contexts.clear()
        most = model.config.max_history_items
        items = [np.asarray(events_of(history).items, dtype=np.int64)[-most:].tobytes() for history in histories]
        found = {key: self._contexts[key] for key in items if key in self._contexts}
        missing = [place for place, key in enumerate(items) if key not in found]
        self.num_found += len(items) - len(missing)
        for key in found:
            self._contexts.move_to_end(key)
        if not missing:
            return put_together([found[key] for key in items])
        encoded = recommender.encode([histories[place] for place in missing])
        new = {items[place]: context for place, context in zip(missing, take_apart(encoded), strict=True)}
        for key, context in new.items():
            self._keep(key, context)
        return put_together([(found | new)[key] for key in items]) if found else encoded

    def _keep(self, key: bytes, context: Context) -> None:
        self._contexts[key] = context
        self._num_bytes += num_bytes(context)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._contexts.popitem(last=False)
            self._num_bytes -= num_bytes(oldest)
