"""A batch of encoded histories taken apart into its requests, and put together from such.

Only for models whose context is the start and the history's items, right-padded: not for those with pathways.

Shapes: B requests, S positions, the start included.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from onerec.model.context import Context
from onerec.model.repeats import SeenItems

_Change = Callable[[Sequence[Tensor], int | None, int], Tensor]
# Fields of a context -> the dimension of S of their tensors, None where there is none.
_DIMENSIONS = {"states_BSD": 1, "newest_BD": None, "keys": 2, "values": 2, "id_states": None, "newest_items_BR": None}


def take_apart(context: Context) -> Iterator[Context]:
    """The context of each request alone, without padding, in memory of its own."""
    for row in range(context.num_requests):
        num_real = context.states_BSD.size(1)
        if context.visible_B11S is not None:
            num_real = int(context.visible_B11S[row].sum())

        def take(values: Tensor, dim: int | None, row: int = row, num_real: int = num_real) -> Tensor:
            one = values[row : row + 1]
            if dim is None:
                return one.clone()
            num_padded = context.states_BSD.size(1) - num_real
            return one.narrow(dim, 0, max(one.size(dim) - num_padded, 1)).clone()

        yield _map([context], lambda values, dim, _: take(values[0], dim))


@torch.inference_mode()
def put_together(contexts: Sequence[Context]) -> Context:
    """One batch of the contexts of single requests, padded to the longest, in their order."""
    if len(contexts) == 1:
        return contexts[0]
    sizes_B = torch.tensor([context.states_BSD.size(1) for context in contexts], device=contexts[0].states_BSD.device)
    visible = None
    if int(sizes_B.min()) < int(sizes_B.max()):
        visible = (torch.arange(int(sizes_B.max()), device=sizes_B.device) < sizes_B[:, None])[:, None, None]
    return replace(_map(contexts, _pad), visible_B11S=visible)


def _pad(values: Sequence[Tensor], dim: int | None, filling: int) -> Tensor:
    if dim is None:
        return torch.cat(list(values))
    shape = list(values[0].shape)
    shape[0], shape[dim] = len(values), max(value.size(dim) for value in values)
    padded = values[0].new_full(shape, filling)
    for row, value in enumerate(values):
        padded[row : row + 1].narrow(dim, 0, value.size(dim)).copy_(value)
    return padded


def _map(contexts: Sequence[Context], change: _Change) -> Context:
    """A context of what `change` makes of the tensors in each place, their dimension of S, and what fills these up."""
    made: dict[int, Tensor] = {}  # layers of a lazy context share theirs

    def of(parts: Sequence[Any], dim: int | None) -> Any:
        if isinstance(parts[0], tuple):
            return tuple(of(layer, dim) for layer in zip(*parts, strict=True))
        if parts[0] is not None and id(parts[0]) not in made:
            made[id(parts[0])] = change(parts, dim, 0)
        return None if parts[0] is None else made[id(parts[0])]

    # A field that is not in the table is an error, not a field of the first request for all.
    names = [field.name for field in fields(Context) if field.name not in ("visible_B11S", "catalogue")]
    mapped = {name: of([getattr(context, name) for context in contexts], _DIMENSIONS[name]) for name in names}
    seen = [context.catalogue.seen for context in contexts if context.catalogue.seen is not None]
    catalogue = replace(contexts[0].catalogue, seen=_map_seen(seen, change) if seen else None)
    return Context(**mapped, visible_B11S=None, catalogue=catalogue)


def _map_seen(seen: Sequence[SeenItems], change: _Change) -> SeenItems:
    prefixes = tuple(change(level, 2, 0) for level in zip(*(each.prefixes for each in seen), strict=True))
    codes, shares = (change([getattr(each, name) for each in seen], 2, 0) for name in ("codes", "shares"))
    return SeenItems(change([each.items for each in seen], 2, -1), prefixes, codes, shares)


def num_bytes(context: Context) -> int:
    """Memory of a context's own tensors."""
    sizes = []

    def note(parts: Sequence[Tensor], _: int | None, __: int) -> Tensor:
        sizes.append(parts[0].nbytes)
        return parts[0]

    _map([context], note)
    return sum(sizes)
