"""Sampling whole items from the model, for the rollouts of reinforcement learning.

Shapes: B requests, G samples of a request, W prefixes that a level extends, C candidates of a request, K codes of a
level, L levels.

An item is drawn code by code. Under the trie each step chooses among the children of its prefix, so every sample is an
allowed item; siblings in a bucket of equal codes compete as equals, each with the full probability of their code, as
in beam search. Without the trie any tuple of codes may come out, and whether an item has it is told.

Two log-probabilities come with every sample:
- `log_probs_BG`, under the distribution that was drawn from: renormalised over the allowed children where the trie
  constrained the draw, divided by the temperature, but before top-p cut its tail. Objectives take this one, and must
  score the policy with the same constraint and temperature, or the ratio of a policy to itself is not 1.
- `plain_log_probs_BG`, the sum of the model's own log-probabilities, as beam search scores: what is renormalised away
  (the mass on codes that no item has) is counted here.

Drawing without replacement is stochastic beam search (Kool, van Hoof and Welling, arXiv 1903.06059, algorithm 1). It
departs so: the root's Gumbel value is 0 instead of drawn, for the order of samples does not depend on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.beam import BatchContext, CodeModel, check_catalogue, find_exclusions
from onerec.decoding.continuations import check_numbers
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Candidates, Trie
from onerec.errors import ConfigError


@dataclass(frozen=True)
class Samples:
    """G samples of each request, in the order they were drawn."""

    items_BG: Tensor  # int64; -1 where nothing allowed was left, or no item has the codes
    codes_BGL: Tensor  # int64
    log_probs_BG: Tensor  # float32, of the distribution drawn from, before top-p; -inf where nothing was left
    plain_log_probs_BG: Tensor  # float32, over all codes at temperature 1


@dataclass(frozen=True)
class _Prefixes:
    """What the samples of a batch have drawn so far."""

    nodes_BW: Tensor  # int64 trie nodes, 0 where dead
    alive_BW: Tensor  # bool, the prefix leads to an allowed item
    log_probs_BW: Tensor
    plain_BW: Tensor
    codes_BWL: Tensor  # the codes of all levels so far


@torch.no_grad()
def sample_items(
    model: CodeModel,
    context: BatchContext,
    trie: Trie,
    num_samples: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
    excluded: Sequence[np.ndarray] | None = None,
    constrained: bool = True,
) -> Samples:
    """Draw `num_samples` independent samples of each request, level by level.

    Args:
        model: gives the log-probabilities of each level; B follows from `context`.
        context: of B requests, from `model.encode`.
        trie: the catalogue the model's codes stand for, on the model's device.
        generator: on the model's device; the same state gives the same samples.
        temperature: the log-probabilities of each level are divided by it.
        top_p: each step keeps the likeliest choices until their mass reaches this (nucleus sampling).
        excluded: item indices each request may not return, one array a request; needs the constraint.
        constrained: draw items of the catalogue only; otherwise any tuple of codes.

    Raises:
        ConfigError: an argument out of range, or exclusions without the constraint.
        ArtifactError, DataError, OneRecError: as beam search.
    """
    _check_arguments(num_samples, temperature, top_p)
    if excluded is not None and not constrained:
        raise ConfigError("excluded: found items to exclude from unconstrained samples. Sample with the trie.")
    check_catalogue(model, trie)
    exclusions = find_exclusions(trie, excluded, context.num_requests)
    cache, prefixes = model.new_cache(), _root(context.num_requests, trie)
    for level in range(trie.num_levels):
        steps_BWK = _read_prefixes(model, prefixes, level, context, cache)
        choices = _allowed(trie, level, prefixes, exclusions) if constrained else _every_code(prefixes, steps_BWK)
        drawn = _draw_level(prefixes, choices, steps_BWK, num_samples, temperature, top_p, generator)
        prefixes = drawn if constrained else _descend(trie, level, drawn)
    return _collect(prefixes, trie, num_samples)


@torch.no_grad()
def sample_distinct_items(
    model: CodeModel,
    context: BatchContext,
    trie: Trie,
    num_samples: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    excluded: Sequence[np.ndarray] | None = None,
) -> Samples:
    """Draw `num_samples` different items of each request without replacement, under the trie.

    The first of a request is distributed as one sample of `sample_items`, each further one likewise among those that
    are left; a request with fewer allowed items gets -1 at the end.

    Raises:
        ConfigError: an argument out of range.
        ArtifactError, DataError, OneRecError: as beam search.
    """
    _check_arguments(num_samples, temperature, top_p=1.0)
    check_catalogue(model, trie)
    exclusions = find_exclusions(trie, excluded, context.num_requests)
    cache, prefixes = model.new_cache(), _root(context.num_requests, trie)
    perturbed_BW = prefixes.log_probs_BW.double()
    for level in range(trie.num_levels):
        steps_BWK = _read_prefixes(model, prefixes, level, context, cache)
        choices = _allowed(trie, level, prefixes, exclusions)
        log_probs_BC, plain_BC = _extended(prefixes, choices, steps_BWK, temperature)
        perturbed_BC = _perturb(log_probs_BC, perturbed_BW, choices, generator)
        perturbed_BW, chosen_BW = perturbed_BC.topk(min(num_samples, perturbed_BC.size(1)), dim=1)
        parents_BW = choices.slots_BC.gather(1, chosen_BW)
        prefixes = _chosen_prefixes(prefixes, choices, log_probs_BC, plain_BC, chosen_BW)
        if level < trie.num_levels - 1:
            cache.reorder(parents_BW)
    return _collect(prefixes, trie, num_samples)


def logsumexp_by_slot(scores_BC: Tensor, slots_BC: Tensor, num_slots: int) -> Tensor:
    """Log of the summed exponentials (B, W) of each slot's candidates; -inf for a slot that has none.

    Candidates that do not count have the score -inf. Gradients flow to `scores_BC` where every slot has a candidate.
    """
    shape = (len(scores_BC), num_slots)
    highest_BW = scores_BC.new_full(shape, float("-inf"))
    highest_BW = highest_BW.scatter_reduce(1, slots_BC, scores_BC.detach(), "amax")
    highest_BW = highest_BW.masked_fill(highest_BW.isneginf(), 0.0)
    shifted_BC = scores_BC - highest_BW.gather(1, slots_BC)
    return highest_BW + scores_BC.new_zeros(shape).scatter_add(1, slots_BC, shifted_BC.exp()).log()


def _check_arguments(num_samples: int, temperature: float, top_p: float) -> None:
    if num_samples < 1 or temperature <= 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"sampling: found {num_samples} samples, temperature {temperature:g} and top_p {top_p:g}; expected at "
            "least one sample, a temperature above 0 and top_p above 0 and at most 1."
        )


def _root(num_requests: int, trie: Trie) -> _Prefixes:
    device = trie.item_of_rank.device
    zeros_B1 = torch.zeros(num_requests, 1, device=device)
    nodes_B1 = zeros_B1.long()
    return _Prefixes(nodes_B1, zeros_B1 == 0, zeros_B1, zeros_B1, nodes_B1[..., None][..., :0])


def _read_prefixes(model: CodeModel, prefixes: _Prefixes, level: int, context: BatchContext, cache: Any) -> Tensor:
    """The model's log-probabilities (B, W, K) of the codes that may come next."""
    codes_BW = prefixes.codes_BWL[..., -1] if level else None
    steps_BWK = model.decode_step(codes_BW, level, context, cache)
    check_numbers(steps_BWK, level)
    return steps_BWK


def _allowed(trie: Trie, level: int, prefixes: _Prefixes, exclusions: Exclusions | None) -> Candidates:
    """The children in the trie as choices of every prefix."""
    children = trie.children(level, prefixes.nodes_BW, prefixes.alive_BW)
    if exclusions is None or (dead_BC := exclusions.contains(level, children.nodes_BC)) is None:
        return children
    return replace(children, present_BC=children.present_BC & ~dead_BC)


def _every_code(prefixes: _Prefixes, steps_BWK: Tensor) -> Candidates:
    """All codes of the level as choices of every prefix, each still with the prefix's own node."""
    num_slots, num_codes = steps_BWK.shape[1:]
    place_BC = torch.arange(num_slots * num_codes, device=steps_BWK.device).expand(len(steps_BWK), -1)
    slots_BC, codes_BC = place_BC // num_codes, place_BC % num_codes
    return Candidates(slots_BC, prefixes.nodes_BW.gather(1, slots_BC), codes_BC, codes_BC >= 0)


def _extended(prefixes: _Prefixes, choices: Candidates, steps_BWK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of every choice with its prefix: of the distribution drawn from, and plain."""
    flat_BC = choices.slots_BC * steps_BWK.size(2) + choices.codes_BC
    steps_BC = steps_BWK.flatten(1).gather(1, flat_BC).float()
    scores_BC = (steps_BC / temperature).masked_fill(~choices.present_BC, float("-inf"))
    totals_BW = logsumexp_by_slot(scores_BC, choices.slots_BC, steps_BWK.size(1))
    log_probs_BC = scores_BC - totals_BW.gather(1, choices.slots_BC)
    log_probs_BC = log_probs_BC.masked_fill(scores_BC.isneginf(), float("-inf"))
    return (
        prefixes.log_probs_BW.gather(1, choices.slots_BC) + log_probs_BC,
        prefixes.plain_BW.gather(1, choices.slots_BC) + steps_BC,
    )


def _draw_level(
    prefixes: _Prefixes,
    choices: Candidates,
    steps_BWK: Tensor,
    num_samples: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> _Prefixes:
    """One choice for every sample, among those of the root or then of its own prefix, by inverting the distribution."""
    num_slots, device = steps_BWK.size(1), steps_BWK.device
    draws_BG = torch.arange(num_samples, device=device).clamp(max=num_slots - 1).expand(len(steps_BWK), -1)
    log_probs_BC, plain_BC = _extended(prefixes, choices, steps_BWK, temperature)
    own_BC = log_probs_BC - prefixes.log_probs_BW.gather(1, choices.slots_BC)
    probs_BC = own_BC.masked_fill(log_probs_BC.isneginf(), float("-inf")).double().exp()
    starts_BW, ends_BW = _slot_ranges(choices, num_slots)
    if top_p < 1:
        probs_BC = _nucleus(probs_BC, choices.slots_BC, starts_BW, top_p)
    running = torch.nn.functional.pad(probs_BC.cumsum(dim=1), (1, 0))
    low_BG = running.gather(1, starts_BW).gather(1, draws_BG)
    high_BG = running.gather(1, ends_BW).gather(1, draws_BG)
    # Single-precision uniforms stay clear of 1, so that a threshold in double precision stays below its slot's end.
    uniform_BG = torch.rand(draws_BG.shape, generator=generator, device=device).double()
    thresholds_BG = low_BG + uniform_BG * (high_BG - low_BG)
    chosen_BG = torch.searchsorted(running[:, 1:].contiguous(), thresholds_BG, right=True)
    dead_BG = high_BG <= low_BG
    chosen_BG = chosen_BG.masked_fill(dead_BG, 0)
    drawn = _chosen_prefixes(prefixes, choices, log_probs_BC, plain_BC, chosen_BG)
    return _without(drawn, dead_BG)


def _slot_ranges(choices: Candidates, num_slots: int) -> tuple[Tensor, Tensor]:
    """First choice and choice after the last (B, W) of each slot; excluded choices keep their places."""
    slots_W = torch.arange(num_slots, device=choices.slots_BC.device).expand(len(choices.slots_BC), -1)
    slots_BC, slots_W = choices.slots_BC.contiguous(), slots_W.contiguous()
    return torch.searchsorted(slots_BC, slots_W), torch.searchsorted(slots_BC, slots_W, right=True)


def _nucleus(probs_BC: Tensor, slots_BC: Tensor, starts_BW: Tensor, top_p: float) -> Tensor:
    """The probabilities with each slot's tail beyond `top_p` set to 0."""
    order_BC = (2.0 * slots_BC - probs_BC).argsort(dim=1)  # by slot, then the likeliest first
    sorted_BC = probs_BC.gather(1, order_BC)
    before_BC = sorted_BC.cumsum(dim=1) - sorted_BC
    first_BC = starts_BW.gather(1, slots_BC)  # slots keep their ranges of places when sorted
    within_BC = before_BC - before_BC.gather(1, first_BC)
    return torch.zeros_like(probs_BC).scatter(1, order_BC, sorted_BC * (within_BC < top_p))


def _chosen_prefixes(
    prefixes: _Prefixes, choices: Candidates, log_probs_BC: Tensor, plain_BC: Tensor, chosen_BG: Tensor
) -> _Prefixes:
    parents_BG = choices.slots_BC.gather(1, chosen_BG)
    before_BGL = prefixes.codes_BWL.gather(1, parents_BG[..., None].expand(-1, -1, prefixes.codes_BWL.size(2)))
    chosen = _Prefixes(
        nodes_BW=choices.nodes_BC.gather(1, chosen_BG),
        alive_BW=prefixes.alive_BW.gather(1, parents_BG),
        log_probs_BW=log_probs_BC.gather(1, chosen_BG),
        plain_BW=plain_BC.gather(1, chosen_BG),
        codes_BWL=torch.cat([before_BGL, choices.codes_BC.gather(1, chosen_BG)[..., None]], dim=2),
    )
    return _without(chosen, chosen.log_probs_BW.isneginf())


def _without(prefixes: _Prefixes, dead_BW: Tensor) -> _Prefixes:
    return _Prefixes(
        nodes_BW=prefixes.nodes_BW.masked_fill(dead_BW, 0),
        alive_BW=prefixes.alive_BW & ~dead_BW,
        log_probs_BW=prefixes.log_probs_BW.masked_fill(dead_BW, float("-inf")),
        plain_BW=prefixes.plain_BW.masked_fill(dead_BW, float("-inf")),
        codes_BWL=prefixes.codes_BWL.masked_fill(dead_BW[..., None], 0),
    )


def _descend(trie: Trie, level: int, prefixes: _Prefixes) -> _Prefixes:
    """From the nodes above, follow the codes last drawn; a prefix that leaves the trie keeps its log-probability.

    Of a bucket of equal codes the first item is taken.
    """
    codes_BG = prefixes.codes_BWL[..., -1]
    children = trie.children(level, prefixes.nodes_BW, prefixes.alive_BW)
    hit_BC = children.present_BC & (children.codes_BC == codes_BG.gather(1, children.slots_BC))
    nowhere = trie.num_nodes(level)
    nodes_BC = children.nodes_BC.masked_fill(~hit_BC, nowhere)
    nodes_BG = torch.full_like(codes_BG, nowhere).scatter_reduce(1, children.slots_BC, nodes_BC, "amin")
    found_BG = nodes_BG < nowhere
    return replace(prefixes, nodes_BW=nodes_BG.masked_fill(~found_BG, 0), alive_BW=found_BG)


def _perturb(log_probs_BC: Tensor, perturbed_BW: Tensor, choices: Candidates, generator: torch.Generator) -> Tensor:
    """Gumbel values of the choices, given that the largest of each slot is the slot's own.

    In the numerically stable form of the paper's appendix on truncated Gumbel variables.
    """
    shape, device = log_probs_BC.shape, log_probs_BC.device
    uniform_BC = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    noise_BC = -(-uniform_BC.clamp(min=tiny).log()).log()
    free_BC = (log_probs_BC.double() + noise_BC).masked_fill(~choices.present_BC, float("-inf"))
    largest_BW = torch.full_like(perturbed_BW, float("-inf")).scatter_reduce(1, choices.slots_BC, free_BC, "amax")
    own_BC = perturbed_BW.gather(1, choices.slots_BC)
    below_BC = torch.log(-torch.expm1(free_BC - largest_BW.gather(1, choices.slots_BC)))
    shift_BC = own_BC - free_BC + below_BC
    truncated_BC = own_BC - shift_BC.clamp(min=0) - torch.log1p(torch.exp(-shift_BC.abs()))
    return truncated_BC.masked_fill(free_BC.isneginf(), float("-inf"))


def _collect(prefixes: _Prefixes, trie: Trie, num_samples: int) -> Samples:
    """The samples, filled up to `num_samples` where a request has fewer."""
    missing = num_samples - prefixes.nodes_BW.size(1)
    items_BG = trie.items_of(prefixes.nodes_BW).masked_fill(~prefixes.alive_BW, -1)
    pad = torch.nn.functional.pad
    return Samples(
        items_BG=pad(items_BG, (0, missing), value=-1),
        codes_BGL=pad(prefixes.codes_BWL, (0, 0, 0, missing)),
        log_probs_BG=pad(prefixes.log_probs_BW, (0, missing), value=float("-inf")),
        plain_log_probs_BG=pad(prefixes.plain_BW, (0, missing), value=float("-inf")),
    )
