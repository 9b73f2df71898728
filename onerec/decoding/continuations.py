"""The best continuations of a level's beams: log-softmax, trie and top-k, without listing what cannot win.

Where few codes may follow, the children there are get listed (`Trie.children`) and the best of them kept. Where many
may, as on the first levels of a large catalogue, listing them costs more than the scores themselves. There the best
scores are found first, whether their codes may follow or not, and looked up in the trie afterwards: as many of them as
it takes to be sure that no allowed one was left out. A step then costs what reading the logits costs, however many
items there are. Both ways give the same beams, bit by bit.

Shapes: B requests, W beams, V beams of the next level, K codes of a level, C candidates or probes of a request, n
chunks of c scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.backends import Backend, takes_kernel
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.range_bits import RANGE_BITS
from onerec.decoding.trie import Trie
from onerec.errors import OneRecError

_NODE_BITS = 32
_DEAD_KEY = torch.iinfo(torch.int64).min  # below the key of any living candidate, even one of score -inf
_SPARE = 1.25  # probes that may follow for each beam that is wanted, were such codes no likelier than others
_MOST_IN_CHUNK = 64


@dataclass(frozen=True)
class Continuations:
    """The best of each request, best first, dead ones last; of equal scores the one that is first in the trie."""

    scores_BV: Tensor  # float32 sums of log-probabilities
    nodes_BV: Tensor  # int64
    codes_BV: Tensor  # int64
    slots_BV: Tensor  # int64, the beam each continues
    alive_BV: Tensor  # bool


def best_continuations(
    trie: Trie,
    level: int,
    nodes_BW: Tensor,
    alive_BW: Tensor,
    scores_BW: Tensor,
    logits_BWK: Tensor,
    num_beams: int,
    exclusions: Exclusions | None = None,
    floor_B: Tensor | None = None,
    normalise: bool = False,
    backend: Backend = "auto",
) -> Continuations:
    """Extend every living beam by its allowed children and keep the best `num_beams` of each request.

    Args:
        nodes_BW: nodes of the level above (0, the root, for level 0).
        scores_BW: of the beams.
        logits_BWK: of `level`; added to the scores as they are, unless `normalise`.
        exclusions: nodes that a request may not enter.
        floor_B: scores below which a continuation dies; only as many are kept as then live in some request.
        normalise: make log-probabilities of the logits first, over all codes of the level, allowed or not.
        backend: a Triton kernel on CUDA, for a tree without changes; a named one that cannot run is an error.

    Raises:
        OneRecError: a score is NaN.
        ImportError: a backend is asked for whose package is not installed.
    """
    if floor_B is None and trie.changes is None and takes_kernel(backend, "triton", logits_BWK):
        beams = _Beams(nodes_BW, alive_BW, scores_BW, logits_BWK)
        return _by_kernel(trie, level, beams, num_beams, exclusions, normalise)
    steps_BWK = logits_BWK.float().log_softmax(dim=2) if normalise else logits_BWK
    beams = _Beams(nodes_BW, alive_BW, scores_BW, steps_BWK)
    if floor_B is None and level > 0 and trie.is_wide(level):
        found = _probe(trie, level, beams, num_beams, exclusions)
        if found is not None:
            return found
    children = trie.children(level, nodes_BW, alive_BW)
    allowed_BC = _allowed(level, children.nodes_BC, children.present_BC, exclusions)
    scores_BC = beams.scores(children.slots_BC, children.codes_BC)
    if floor_B is not None:
        allowed_BC = allowed_BC & (scores_BC >= floor_B[:, None])
        num_beams = min(num_beams, max(1, int(allowed_BC.sum(dim=1).max())))
    check_numbers(scores_BC, level)
    return keep_best(scores_BC, children.nodes_BC, children.codes_BC, children.slots_BC, allowed_BC, num_beams)


def check_numbers(scores: Tensor, level: int) -> None:
    """Refuse scores of `level` that are NaN, with OneRecError."""
    is_nan = scores.isnan()
    if bool(is_nan.any()):
        raise OneRecError(
            f"level {level}: {int(is_nan.sum())} of {scores.numel()} scores are NaN, expected log-probabilities. "
            "The model's weights or inputs hold NaN or infinity; did training diverge?"
        )


@dataclass(frozen=True)
class _Beams:
    nodes_BW: Tensor
    alive_BW: Tensor
    scores_BW: Tensor
    steps_BWK: Tensor  # what each code adds to them

    def scores(self, slots_BC: Tensor, codes_BC: Tensor) -> Tensor:
        """Of continuations, in float32."""
        flat_BC = slots_BC * self.steps_BWK.size(2) + codes_BC
        steps_BC = self.steps_BWK.flatten(1).gather(1, flat_BC).float()
        return self.scores_BW.gather(1, slots_BC) + steps_BC


def _by_kernel(
    trie: Trie, level: int, beams: _Beams, num_beams: int, exclusions: Exclusions | None, normalise: bool
) -> Continuations:
    from kernels.triton_trie_top_k import trie_top_k

    begins_BW, ends_BW = trie.child_ranges(level, beams.nodes_BW)
    ends_BW = torch.where(beams.alive_BW, ends_BW, begins_BW)
    bits = None if exclusions is None else exclusions.bits(level)
    scores_BV, nodes_BV, slots_BV, alive_BV = trie_top_k(
        beams.steps_BWK,
        beams.scores_BW,
        begins_BW,
        ends_BW,
        trie.child_codes[level],
        trie.most_children[level],
        num_beams,
        None if bits is None else (bits.block_BR, bits.bytes, RANGE_BITS),
        normalise,
    )
    check_numbers(scores_BV, level)
    return Continuations(scores_BV, nodes_BV, trie.codes_of(level, nodes_BV), slots_BV, alive_BV)


def _probe(
    trie: Trie, level: int, beams: _Beams, num_beams: int, exclusions: Exclusions | None
) -> Continuations | None:
    """The best, by looking up the best scores of all; None where too few of these were allowed to be sure."""
    num_codes = beams.steps_BWK.size(2)
    num_probes = int(_SPARE * num_beams / trie.share(level)) + 1
    if num_probes * 2 > beams.nodes_BW.size(1) * num_codes // _chunk_size(num_codes):
        return None
    shifts_BW = beams.scores_BW.masked_fill(~beams.alive_BW, float("-inf"))
    places_p, bound_B = top_of_sums(beams.steps_BWK.float(), shifts_BW, num_probes)
    parents_p = beams.nodes_BW.flatten().index_select(0, places_p // num_codes)
    nodes_p, present_p = trie.find_children(level, parents_p, places_p % num_codes)
    places_p = places_p.masked_select(present_p)
    requests_p = places_p // beams.steps_BWK[0].numel()
    present_BC, (nodes_BC, places_BC) = _pack(requests_p, [nodes_p.masked_select(present_p), places_p], bound_B)
    if present_BC.size(1) < num_beams:
        return None
    codes_BC, slots_BC = places_BC % num_codes, places_BC // num_codes % beams.nodes_BW.size(1)
    present_BC = present_BC & beams.alive_BW.gather(1, slots_BC)
    allowed_BC = _allowed(level, nodes_BC, present_BC, exclusions)
    best = keep_best(beams.scores(slots_BC, codes_BC), nodes_BC, codes_BC, slots_BC, allowed_BC, num_beams)
    sure_B = best.alive_BV[:, -1] & (best.scores_BV[:, -1] > bound_B)
    return best if bool(sure_B.all()) else None


def top_of_sums(logits_BWK: Tensor, shifts_BW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At least the `count` highest of a request's logits, each with its beam's shift: those at or above a bound.

    The bound is the lowest of the `count` highest maxima of chunks: no other chunk holds anything above it.

    Returns:
        Places (p,) among all B * W * K, request by request; the bound (B,), NaN where a logit is.
    """
    chunk = _chunk_size(logits_BWK.size(2))
    chunks_BWnc = logits_BWK.unflatten(2, (-1, chunk))
    maxima_Bn = (chunks_BWnc.amax(dim=3) + shifts_BW[..., None]).flatten(1)
    highest_Bn, chosen_Bn = maxima_Bn.topk(count, dim=1, sorted=False)
    bound_B = highest_Bn.amin(dim=1)
    rows_n = (chosen_Bn + torch.arange(len(chosen_Bn), device=chosen_Bn.device)[:, None] * maxima_Bn.size(1)).flatten()
    picked_nc = chunks_BWnc.reshape(-1, chunk).index_select(0, rows_n)
    picked_Bnc = picked_nc.view(*chosen_Bn.shape, chunk)
    picked_Bnc += shifts_BW.gather(1, chosen_Bn // chunks_BWnc.size(2))[..., None]
    found_p = _places_reaching(picked_Bnc, bound_B[:, None, None])
    return rows_n.index_select(0, found_p // chunk) * chunk + found_p % chunk, bound_B


def _places_reaching(values: Tensor, bounds: Tensor) -> Tensor:
    """Places, in the flattened values, of those that are not below their bounds; bounds are broadcast."""
    if values.device.type == "cpu":  # by NumPy, which compares and finds a few among many several times faster
        return torch.from_numpy(np.flatnonzero(values.numpy() >= bounds.numpy()))
    return (values >= bounds).flatten().nonzero()[:, 0]


def _pack(requests_p: Tensor, columns: Sequence[Tensor], rows_B: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A row of each column (p,) for each request, zeros behind, all (B, C), and before them what is no padding."""
    counts_B = torch.bincount(requests_p, minlength=len(rows_B))
    present_BC = torch.arange(max(1, int(counts_B.max())), device=rows_B.device) < counts_B[:, None]
    packed = [torch.zeros(present_BC.shape, dtype=column.dtype, device=rows_B.device) for column in columns]
    for rows_BC, column in zip(packed, columns, strict=True):
        rows_BC.masked_scatter_(present_BC, column)
    return present_BC, packed


def _chunk_size(num_codes: int) -> int:
    return math.gcd(num_codes, _MOST_IN_CHUNK)


def _allowed(level: int, nodes_BC: Tensor, present_BC: Tensor, exclusions: Exclusions | None) -> Tensor:
    if exclusions is None or (dead_BC := exclusions.contains(level, nodes_BC)) is None:
        return present_BC
    return present_BC & ~dead_BC


def keep_best(
    scores_BC: Tensor, nodes_BC: Tensor, codes_BC: Tensor, slots_BC: Tensor, allowed_BC: Tensor, num_beams: int
) -> Continuations:
    """The best `num_beams` of each request's candidates, of those that are allowed."""
    keys_BC = unique_keys(scores_BC, nodes_BC).masked_fill_(~allowed_BC, _DEAD_KEY)
    keys_BV, chosen_BV = keys_BC.topk(min(num_beams, keys_BC.size(1)), dim=1)
    alive_BV = keys_BV > _DEAD_KEY
    dead_BV = ~alive_BV
    return Continuations(
        scores_BV=scores_BC.gather(1, chosen_BV).masked_fill_(dead_BV, float("-inf")),
        nodes_BV=nodes_BC.gather(1, chosen_BV).masked_fill_(dead_BV, 0),
        codes_BV=codes_BC.gather(1, chosen_BV),
        slots_BV=slots_BC.gather(1, chosen_BV),
        alive_BV=alive_BV,
    )


def unique_keys(scores_BC: Tensor, nodes_BC: Tensor) -> Tensor:
    """Integers in the order of (score, -node)."""
    bits_BC = scores_BC.view(torch.int32)
    # IEEE floats order like signed integers once the magnitude bits of the negative ones are flipped.
    ordered_BC = bits_BC ^ (bits_BC >> 31).bitwise_and_(0x7FFFFFFF)
    return (ordered_BC.long() << _NODE_BITS).sub_(nodes_BC)
