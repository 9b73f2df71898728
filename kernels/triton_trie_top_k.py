"""Log-softmax, trie and top-k of a decoding step in one pass over the logits, by Triton.

A program reads the logits of one beam once, for the sum, and once more at the codes of the beam's children, which are
still in the cache. What it writes is the best of each tile of children, as integers in the order of (score, -node); one
top-k over those of all beams ends the step. Nothing waits for the device: the children are looked for as far as the
level's largest branching reaches.

Legend: B requests, W beams, V kept beams, K codes, R ranges of nodes that share a block of exclusion bits, n best of a
tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_support import padded

_MOST_CHILDREN = 1024  # of a tile
_DEAD_KEY = torch.iinfo(torch.int64).min


def trie_top_k(
    logits_BWK: Tensor,
    scores_BW: Tensor,
    begins_BW: Tensor,
    ends_BW: Tensor,
    codes: Tensor,
    most_children: int,
    num_kept: int,
    dead_bits: tuple[Tensor, Tensor, int] | None = None,
    normalise: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, nodes, beams and life (B, V) of the best continuations, best first, dead ones last.

    Args:
        scores_BW: float32 of the beams.
        begins_BW: first child of each beam, a dead beam's equal to its end.
        ends_BW: the node after the last child.
        codes: of the level's nodes.
        most_children: that a beam can have.
        dead_bits: blocks (B, R) of exclusion bits, the blocks' bytes, and the binary logarithm of a range's nodes.
        normalise: make log-probabilities of the logits; else they are added to the scores as they are.
    """
    num_requests, num_beams, num_codes = logits_BWK.shape
    tile = min(padded(most_children), _MOST_CHILDREN)
    num_best = min(padded(num_kept, 2), tile)
    num_tiles = triton.cdiv(most_children, tile)
    keys = torch.empty((num_requests, num_beams * num_tiles * num_best), dtype=torch.int64, device=logits_BWK.device)
    blocks_BR, bits, range_bits = dead_bits or (codes, codes, 0)
    _best_of_beam[(num_requests * num_beams,)](
        logits_BWK.contiguous(),
        scores_BW.contiguous(),
        begins_BW.int().contiguous(),
        ends_BW.int().contiguous(),
        codes,
        blocks_BR,
        bits,
        keys,
        num_beams,
        num_codes,
        0 if dead_bits is None else blocks_BR.size(1),
        num_tiles,
        TILE_K=min(padded(num_codes), 4096),
        TILE_C=tile,
        NUM_BEST=num_best,
        NORMALISE=normalise,
        EXCLUDES=dead_bits is not None,
        RANGE_BITS=range_bits,
    )
    keys_BV, places_BV = keys.topk(min(num_kept, keys.size(1)), dim=1)
    found_BV, nodes_BV, alive_BV = _read_keys(keys_BV)
    return found_BV, nodes_BV, places_BV // (num_tiles * num_best), alive_BV


def _read_keys(keys_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, nodes and life (B, V) that the kernel has made keys of."""
    alive_BV = keys_BV > _DEAD_KEY
    nodes_BV = (-keys_BV & 0xFFFFFFFF).masked_fill_(~alive_BV, 0)
    ordered_BV = ((keys_BV + nodes_BV) >> 32).int()
    scores_BV = (ordered_BV ^ ((ordered_BV >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores_BV.masked_fill(~alive_BV, float("-inf")), nodes_BV, alive_BV


@triton.jit
def _log_sum(row: tl.tensor, num_codes: tl.tensor, TILE_K: tl.constexpr) -> tl.tensor:
    """Logarithm of the summed exponentials of a row of logits."""
    at_k = tl.arange(0, TILE_K)
    peaks_K = tl.full([TILE_K], float("-inf"), tl.float32)  # a place of the tile each, summed up at the end
    masses_K = tl.zeros([TILE_K], tl.float32)
    for start in range(0, num_codes, TILE_K):
        inside = start + at_k < num_codes
        logits_K = tl.load(row + start + at_k, mask=inside, other=float("-inf")).to(tl.float32)
        higher_K = tl.maximum(peaks_K, logits_K)
        finite_K = tl.where(higher_K == float("-inf"), 0.0, higher_K)
        masses_K = masses_K * tl.exp(peaks_K - finite_K) + tl.exp(logits_K - finite_K)
        peaks_K = higher_K
    peak = tl.max(peaks_K, 0)
    return peak + tl.log(tl.sum(masses_K * tl.exp(peaks_K - peak), 0))


@triton.jit
def _best_of_beam(
    logits: tl.tensor,
    scores: tl.tensor,
    begins: tl.tensor,
    ends: tl.tensor,
    codes: tl.tensor,
    blocks: tl.tensor,
    bits: tl.tensor,
    keys: tl.tensor,
    num_beams: tl.tensor,
    num_codes: tl.tensor,
    num_ranges: tl.tensor,
    num_tiles: tl.tensor,
    TILE_K: tl.constexpr,
    TILE_C: tl.constexpr,
    NUM_BEST: tl.constexpr,
    NORMALISE: tl.constexpr,
    EXCLUDES: tl.constexpr,
    RANGE_BITS: tl.constexpr,
) -> None:
    """Keys of the best of each tile of one beam's children."""
    beam = tl.program_id(0).to(tl.int64)
    row = logits + beam * num_codes
    total = 0.0
    if NORMALISE:
        total = _log_sum(row, num_codes, TILE_K)
    score, begin, end = tl.load(scores + beam), tl.load(begins + beam), tl.load(ends + beam)
    out = keys + beam * num_tiles * NUM_BEST + tl.arange(0, NUM_BEST)
    for tile in range(num_tiles):
        nodes_C = begin + tile * TILE_C + tl.arange(0, TILE_C)
        living_C = nodes_C < end
        codes_C = tl.load(codes + nodes_C, mask=living_C, other=0).to(tl.int32)
        steps_C = tl.load(row + codes_C, mask=living_C, other=0.0).to(tl.float32) - total
        if EXCLUDES:
            request = beam // num_beams
            blocks_C = tl.load(blocks + request * num_ranges + (nodes_C >> RANGE_BITS), mask=living_C, other=0)
            within_C = (nodes_C & ((1 << RANGE_BITS) - 1)) >> 3
            bytes_C = tl.load(bits + (blocks_C << (RANGE_BITS - 3)) + within_C, mask=living_C, other=0).to(tl.int32)
            living_C = living_C & (((bytes_C >> (nodes_C & 7)) & 1) == 0)
        raw_C = (score + steps_C).to(tl.int32, bitcast=True)
        ordered_C = raw_C ^ ((raw_C >> 31) & 0x7FFFFFFF)  # floats in the order of whole numbers
        keys_C = ordered_C.to(tl.int64) * 4294967296 - nodes_C
        keys_C = tl.where(living_C, keys_C, -9223372036854775808)
        tl.store(out + tile * NUM_BEST, tl.topk(keys_C, NUM_BEST))
