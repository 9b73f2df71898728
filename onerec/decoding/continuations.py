"""The best continuations of a level's beams: log-softmax, trie and top-k, without listing what cannot win.

Where few codes may follow, the children there are get listed (`Trie.children`) and the best of them kept. Where many
may, as on the first levels of a large catalogue, listing them costs more than the scores themselves. There the best
scores are found first, whether their codes may follow or not, and looked up in the trie afterwards: as many of them as
it takes to be sure that no allowed one was left out. A step then costs what reading the logits costs, however many
items there are. Both ways give the same beams, bit by bit.

Shapes: B requests, W beams, V beams of the next level, K codes of a level, C candidates or probes of a request, n
chunks of 32 scores.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.backends import Backend, takes_kernel
from onerec.decoding.range_bits import RANGE_BITS
from onerec.decoding.trie import Exclusions, Trie
from onerec.errors import OneRecError

_NODE_BITS = 32
_DEAD_KEY = torch.iinfo(torch.int64).min  # below the key of any living candidate, even one of score -inf
_LISTED_SHARE = 1 / 16  # of its codes that a prefix has on average; up to here listing them is the faster way
_SPARE = 1.5  # probes that may follow for each beam that is wanted, were such codes no likelier than others
_CHUNK = 32
_ROUNDING = 1e-5  # by which two orders of adding up one score may differ, as a share of it


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
    beams = _Beams(nodes_BW, alive_BW, scores_BW, logits_BWK, normalise)
    if floor_B is None and trie.changes is None and takes_kernel(backend, "triton", logits_BWK):
        return _by_kernel(trie, level, beams, num_beams, exclusions)
    if floor_B is None and _is_wide(trie, level, logits_BWK.size(2)):
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
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise OneRecError(
            f"level {level}: {num_nan} of {scores.numel()} scores are NaN, expected log-probabilities. "
            "The model's weights or inputs hold NaN or infinity; did training diverge?"
        )


@dataclass(frozen=True)
class _Beams:
    nodes_BW: Tensor
    alive_BW: Tensor
    scores_BW: Tensor
    logits_BWK: Tensor
    normalise: bool

    @cached_property
    def totals(self) -> Tensor:
        """Log of the summed exponentials (B, W)."""
        return self.logits_BWK.float().logsumexp(dim=2)

    def scores(self, slots_BC: Tensor, codes_BC: Tensor) -> Tensor:
        """Of continuations, in float32."""
        flat_BC = slots_BC * self.logits_BWK.size(2) + codes_BC
        steps_BC = self.logits_BWK.flatten(1).gather(1, flat_BC).float()
        if self.normalise:
            steps_BC = steps_BC - self.totals.gather(1, slots_BC)
        return self.scores_BW.gather(1, slots_BC) + steps_BC


def _is_wide(trie: Trie, level: int, num_codes: int) -> bool:
    """Whether so many codes may follow many prefixes that probing is the faster way, and a code stands for one node."""
    return (
        level > 0
        and _share(trie, level, num_codes) > _LISTED_SHARE
        and (level < trie.num_levels - 1 or trie.has_unique_codes)
    )


def _share(trie: Trie, level: int, num_codes: int) -> float:
    """Codes that may follow a prefix, on average, among all."""
    return trie.num_nodes(level) / (num_codes * trie.num_nodes(level - 1))


def _by_kernel(trie: Trie, level: int, beams: _Beams, num_beams: int, exclusions: Exclusions | None) -> Continuations:
    from kernels.triton_trie_top_k import trie_top_k

    begins_BW, ends_BW = trie.child_ranges(level, beams.nodes_BW)
    ends_BW = torch.where(beams.alive_BW, ends_BW, begins_BW)
    bits = None if exclusions is None else exclusions.bits(level)
    scores_BV, nodes_BV, slots_BV, alive_BV = trie_top_k(
        beams.logits_BWK,
        beams.scores_BW,
        begins_BW,
        ends_BW,
        trie.child_codes[level],
        trie.most_children[level],
        num_beams,
        None if bits is None else (bits.block_BR, bits.bytes, RANGE_BITS),
        beams.normalise,
    )
    check_numbers(scores_BV, level)
    return Continuations(scores_BV, nodes_BV, trie.codes_of(level, nodes_BV), slots_BV, alive_BV)


def _probe(
    trie: Trie, level: int, beams: _Beams, num_beams: int, exclusions: Exclusions | None
) -> Continuations | None:
    """The best, by looking up the best scores of all; None where too few of these were allowed to be sure."""
    num_codes = beams.logits_BWK.size(2)
    num_probes = int(_SPARE * num_beams / _share(trie, level, num_codes)) + 1
    if num_probes * 2 > beams.nodes_BW.size(1) * num_codes:
        return None
    shifts_BW = beams.scores_BW - beams.totals if beams.normalise else beams.scores_BW
    shifts_BW = shifts_BW.masked_fill(~beams.alive_BW, float("-inf"))
    highest_BC, flat_BC = top_of_sums(beams.logits_BWK.float(), shifts_BW, num_probes)
    slots_BC, codes_BC = flat_BC // num_codes, flat_BC % num_codes
    nodes_BC, present_BC = trie.find_children(level, beams.nodes_BW.gather(1, slots_BC), codes_BC)
    present_BC = present_BC & beams.alive_BW.gather(1, slots_BC)
    allowed_BC = _allowed(level, nodes_BC, present_BC, exclusions)
    scores_BC = beams.scores(slots_BC, codes_BC)
    check_numbers(scores_BC, level)
    best = keep_best(scores_BC, nodes_BC, codes_BC, slots_BC, allowed_BC, num_beams)
    lowest_B, left_out_B = best.scores_BV[:, -1], highest_BC[:, -1]
    sure_B = best.alive_BV[:, -1] & (lowest_B > left_out_B + _ROUNDING * (1 + left_out_B.abs()))
    return best if bool(sure_B.all()) else None


def top_of_sums(logits_BWK: Tensor, shifts_BW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of a request's logits, each with its beam's shift, in descending order, and their places.

    They all stand in the `count` chunks with the highest maxima, so that only these are added up and sorted.
    """
    num_codes = logits_BWK.size(2)
    num_chunks = logits_BWK.size(1) * num_codes // _CHUNK
    if num_codes % _CHUNK or count * 2 > num_chunks:
        best = (logits_BWK + shifts_BW[..., None]).flatten(1).topk(count, dim=1)
        return best.values, best.indices
    chunks_BWnc = logits_BWK.unflatten(2, (-1, _CHUNK))
    maxima_Bn = (chunks_BWnc.amax(dim=3) + shifts_BW[..., None]).flatten(1)
    chosen_Bn = maxima_Bn.topk(count, dim=1, sorted=False).indices
    rows_n = (chosen_Bn + torch.arange(len(chosen_Bn), device=chosen_Bn.device)[:, None] * num_chunks).flatten()
    picked_Bnc = chunks_BWnc.reshape(-1, _CHUNK).index_select(0, rows_n).view(*chosen_Bn.shape, _CHUNK)
    picked_Bnc += shifts_BW.gather(1, chosen_Bn // (num_codes // _CHUNK))[..., None]
    highest_BC, places_BC = picked_Bnc.flatten(1).topk(count, dim=1)
    return highest_BC, chosen_Bn.gather(1, places_BC // _CHUNK) * _CHUNK + places_BC % _CHUNK


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
    return Continuations(
        scores_BV=scores_BC.gather(1, chosen_BV).masked_fill_(~alive_BV, float("-inf")),
        nodes_BV=nodes_BC.gather(1, chosen_BV).masked_fill_(~alive_BV, 0),
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
