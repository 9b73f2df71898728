"""Sampling against exhaustive distributions of small catalogues, by frequencies and by exact log-probabilities."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from onerec.decoding.sampling import Samples, logsumexp_by_slot, sample_distinct_items, sample_items
from onerec.decoding.trie import Trie
from onerec.errors import ArtifactError, ConfigError, DataError, OneRecError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec

SIZES = (3, 4)
CODES_NL = np.array([[0, 0], [0, 3], [1, 1], [2, 0], [2, 1], [2, 2], [2, 2]])  # the last two share a bucket
RANKS_N = np.array([0, 0, 0, 0, 0, 0, 1])
NUM_DRAWS = 40_000


class PrefixModel:
    """Log-probabilities by request and prefix, drawn from a seed; `decode_step` keeps the prefixes itself."""

    def __init__(self, trie: Trie, rows: tuple[int, ...] = (0,), spread: float = 1.0) -> None:
        self.config = self
        self.codes_per_level, self.num_items = list(trie.codes_per_level), trie.num_items
        self.rows, self.num_requests, self.spread = rows, len(rows), spread

    def row(self, request: int, prefix: tuple[int, ...]) -> Tensor:
        logits = np.random.default_rng([request, *prefix]).normal(0, self.spread, self.codes_per_level[len(prefix)])
        return torch.from_numpy(logits).float().log_softmax(-1)

    def new_cache(self) -> "PrefixModel":
        self.prefixes: list[list[tuple[int, ...]]] = [[()] for _ in self.rows]
        return self

    def reorder(self, parents_BW: Tensor) -> None:
        self.prefixes = [[row[p] for p in parents] for row, parents in zip(self.prefixes, parents_BW, strict=True)]

    def decode_step(self, codes_BW: Tensor | None, level: int, context: Any, cache: "PrefixModel") -> Tensor:
        if codes_BW is not None:
            width = codes_BW.shape[1]
            self.prefixes = [row * width if len(row) == 1 else row for row in self.prefixes]
            pairs = zip(self.prefixes, codes_BW.tolist(), strict=True)
            self.prefixes = [[(*p, c) for p, c in zip(row, codes, strict=True)] for row, codes in pairs]
        known = {(r, p): self.row(r, p) for r, row in zip(self.rows, self.prefixes, strict=True) for p in set(row)}
        pairs = zip(self.rows, self.prefixes, strict=True)
        return torch.stack([torch.stack([known[r, prefix] for prefix in row]) for r, row in pairs])


def make_trie() -> Trie:
    return Trie.from_table(CODES_NL, SIZES, RANKS_N)


def cut(probs: np.ndarray, top_p: float) -> np.ndarray:
    """Nucleus of a distribution: the likeliest entries until their mass reaches `top_p`."""
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    kept = np.zeros_like(probs)
    kept[order] = probs[order] * (before < top_p)
    return kept / kept.sum()


def exact(
    model: PrefixModel, request: int, temperature: float = 1.0, top_p: float = 1.0, allowed: set[int] | None = None
) -> np.ndarray:
    """Probability of each item by walking the choices of each step, straight from the definition."""
    allowed = set(range(len(CODES_NL))) if allowed is None else allowed
    first = sorted({CODES_NL[item, 0] for item in allowed})
    logits = model.row(request, ()).double().numpy()[first] / temperature
    top = cut(np.exp(logits) / np.exp(logits).sum(), top_p)
    probs = np.zeros(len(CODES_NL))
    for code, mass in zip(first, top, strict=True):
        items = sorted(item for item in allowed if CODES_NL[item, 0] == code)
        below = model.row(request, (code,)).double().numpy()[CODES_NL[items, 1]] / temperature
        probs[items] = mass * cut(np.exp(below) / np.exp(below).sum(), top_p)
    return probs


def draw(model: PrefixModel, num: int = NUM_DRAWS, seed: int = 0, **options: Any) -> Samples:
    return sample_items(model, model, make_trie(), num, torch.Generator().manual_seed(seed), **options)


def assert_frequencies(counts: np.ndarray, probs: np.ndarray) -> None:
    """Frequencies follow the distribution: chi-square at one in a thousand, and nothing of probability zero."""
    assert counts[probs == 0].sum() == 0
    possible = probs > 0
    assert chisquare(counts[possible], probs[possible] / probs.sum() * counts.sum()).pvalue > 1e-3


# ---- with the trie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (3.0, 1.0), (1.0, 0.6)])
def test_items_are_drawn_with_their_probability(temperature: float, top_p: float) -> None:
    model = PrefixModel(make_trie(), rows=(0, 1))
    samples = draw(model, temperature=temperature, top_p=top_p)
    for place, request in enumerate(model.rows):
        counts = np.bincount(samples.items_BG[place], minlength=len(CODES_NL))
        assert_frequencies(counts, exact(model, request, temperature, top_p))


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_log_probabilities_are_those_of_the_constrained_and_of_the_plain_distribution(top_p: float) -> None:
    model = PrefixModel(make_trie(), rows=(0, 1))
    samples = draw(model, 50, temperature=0.5, top_p=top_p)
    for place, request in enumerate(model.rows):
        items = samples.items_BG[place]
        assert len(set(items.tolist())) > 1
        constrained_N = torch.from_numpy(np.log(exact(model, request, 0.5))).float()
        torch.testing.assert_close(samples.log_probs_BG[place], constrained_N[items], rtol=0, atol=1e-5)
        plain_N = torch.tensor([float(model.row(request, ())[a] + model.row(request, (a,))[b]) for a, b in CODES_NL])
        torch.testing.assert_close(samples.plain_log_probs_BG[place], plain_N[items])
        torch.testing.assert_close(samples.codes_BGL[place], torch.from_numpy(CODES_NL)[items])


def test_excluded_items_are_never_drawn_and_the_rest_shares_their_mass() -> None:
    model = PrefixModel(make_trie(), rows=(0, 1, 2))
    excluded = [np.array([0, 1, 5]), np.array([], dtype=np.int64), np.arange(7)]
    samples = draw(model, excluded=excluded)
    for place in (0, 1):
        probs = exact(model, place, allowed=set(range(7)) - set(excluded[place].tolist()))
        assert_frequencies(np.bincount(samples.items_BG[place], minlength=7), probs)
        expected = torch.from_numpy(probs).float().log()[samples.items_BG[place]]
        torch.testing.assert_close(samples.log_probs_BG[place], expected, rtol=0, atol=1e-5)
    assert (samples.items_BG[2] == -1).all()
    assert samples.log_probs_BG[2].isneginf().all()


def test_the_seed_fixes_the_samples() -> None:
    model = PrefixModel(make_trie())
    first, again, other = (draw(model, 64, seed=seed) for seed in (3, 3, 4))
    torch.testing.assert_close(first.items_BG, again.items_BG)
    assert (first.items_BG != other.items_BG).any()


# ---- without the trie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_free_codes_are_drawn_with_their_probability_and_legality_is_told(temperature: float) -> None:
    model = PrefixModel(make_trie(), rows=(5,))
    samples = draw(model, constrained=False, temperature=temperature)
    probs = np.zeros(SIZES)
    for a, b in product(*map(range, SIZES)):
        steps = [(model.row(5, prefix) / temperature).log_softmax(-1) for prefix in ((), (a,))]
        probs[a, b] = float((steps[0][a] + steps[1][b]).exp())
    codes_GL = samples.codes_BGL[0].numpy()
    flat_G = codes_GL @ [SIZES[1], 1]
    assert_frequencies(np.bincount(flat_G, minlength=12), probs.ravel())
    torch.testing.assert_close(
        samples.log_probs_BG[0], torch.from_numpy(np.log(probs.ravel()[flat_G])).float(), rtol=0, atol=1e-5
    )
    item_of_codes = {(0, 0): 0, (0, 3): 1, (1, 1): 2, (2, 0): 3, (2, 1): 4, (2, 2): 5}
    assert samples.items_BG[0].tolist() == [item_of_codes.get((a, b), -1) for a, b in codes_GL.tolist()]
    assert 0.1 < float((samples.items_BG >= 0).float().mean()) < 0.9


def test_top_p_of_free_codes_keeps_the_likeliest() -> None:
    model = PrefixModel(make_trie(), rows=(5,))
    samples = draw(model, constrained=False, top_p=1e-6)
    first = int(model.row(5, ()).argmax())
    assert samples.codes_BGL[0].unique(dim=0).tolist() == [[first, int(model.row(5, (first,)).argmax())]]


# ---- without replacement -----------------------------------------------------------------------------------------


def test_pairs_without_replacement_have_their_probability() -> None:
    model = PrefixModel(make_trie(), rows=(7,) * 400)
    generator = torch.Generator().manual_seed(0)
    rounds = [sample_distinct_items(model, model, make_trie(), 2, generator, 1.5).items_BG for _ in range(50)]
    pairs = torch.cat(rounds)
    probs = exact(model, 7, temperature=1.5)
    ordered = list(permutations(range(7), 2))
    expected = np.array([probs[a] * probs[b] / (1 - probs[a]) for a, b in ordered])
    places = {pair: place for place, pair in enumerate(ordered)}
    counts = np.bincount([places[a, b] for a, b in pairs.tolist()], minlength=len(ordered))
    assert_frequencies(counts, expected)


def test_more_than_the_catalogue_gives_every_item_once_with_its_own_probability() -> None:
    model = PrefixModel(make_trie(), rows=(0, 1))
    generator = torch.Generator().manual_seed(0)
    excluded = [np.array([], dtype=np.int64), np.array([0, 1, 5])]
    samples = sample_distinct_items(model, model, make_trie(), 9, generator, 0.7, excluded)
    assert sorted(samples.items_BG[0].tolist()) == [-1, -1, 0, 1, 2, 3, 4, 5, 6]
    assert samples.items_BG[0, 7:].tolist() == [-1, -1]
    assert sorted(samples.items_BG[1].tolist()) == [-1] * 5 + [2, 3, 4, 6]
    for place, allowed in ((0, set(range(7))), (1, {2, 3, 4, 6})):
        items = samples.items_BG[place, : len(allowed)]
        expected = torch.from_numpy(exact(model, place, 0.7, allowed=allowed)).float().log()[items]
        torch.testing.assert_close(samples.log_probs_BG[place, : len(allowed)], expected, rtol=0, atol=1e-5)


# ---- the real model, and random catalogues -----------------------------------------------------------------------


def real_model(codes_NL: np.ndarray, sizes: tuple[int, ...]) -> OneRec:
    torch.manual_seed(0)
    config = OneRecConfig(codes_per_level=sizes, num_items=len(codes_NL), d_model=16, d_ff=32, max_history_items=8)
    model = OneRec(config).eval()
    model.set_codes(codes_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@pytest.mark.parametrize("sampler", ["ancestral", "free", "distinct"])
def test_the_model_reads_what_was_drawn(sampler: str) -> None:
    """Log-probabilities agree with teacher forcing, so the decoder's cache follows the right prefixes."""
    sizes = (5, 4, 3)
    codes_NL = np.stack(np.unravel_index(np.random.default_rng(0).choice(60, 25, replace=False), sizes), axis=1)
    model, trie = real_model(codes_NL, sizes), Trie.from_table(codes_NL, sizes)
    histories_BS, lengths_B = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])
    with torch.no_grad():
        context = model.encode(histories_BS, lengths_B)
    generator = torch.Generator().manual_seed(0)
    if sampler == "distinct":
        samples = sample_distinct_items(model, context, trie, 10, generator)
    else:
        samples = sample_items(model, context, trie, 10, generator, constrained=sampler == "ancestral")
    tokens_BGL = samples.codes_BGL + torch.tensor(model.config.level_offsets)
    for place, length in enumerate(lengths_B.tolist()):
        inputs_GL = torch.cat([torch.ones(10, 1, dtype=torch.long), tokens_BGL[place, :, :-1]], dim=1)
        history_GS = (histories_BS[place, :length] + 1).expand(10, -1)
        with torch.no_grad():
            logits_GLV = model(input_ids=history_GS, decoder_input_ids=inputs_GL).logits
        expected = logits_GLV.log_softmax(-1).gather(2, tokens_BGL[place][..., None]).sum(dim=(1, 2))
        torch.testing.assert_close(samples.plain_log_probs_BG[place], expected, rtol=0, atol=1e-4)
        if sampler == "free":
            torch.testing.assert_close(samples.log_probs_BG[place], expected, rtol=0, atol=1e-4)


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, Trie, list[np.ndarray]]:
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    num_items = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    codes_NL = rng.integers(0, sizes, (num_items, len(sizes)))
    excluded = [rng.choice(num_items, draw(st.integers(0, num_items)), replace=False) for _ in range(2)]
    return codes_NL, Trie.from_table(codes_NL, sizes, rng.permutation(num_items)), excluded


@given(catalogues(), st.integers(1, 12), st.sampled_from([0.5, 1.0]))
@settings(max_examples=40)
def test_only_allowed_items_ever_come_out(case: Any, num_samples: int, top_p: float) -> None:
    codes_NL, trie, excluded = case
    model = PrefixModel(trie, rows=(0, 1), spread=8.0)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_items(model, model, trie, num_samples, generator, top_p=top_p, excluded=excluded)
    distinct = sample_distinct_items(model, model, trie, num_samples, generator, excluded=excluded)
    for place, banned in enumerate(excluded):
        allowed = set(range(len(codes_NL))) - set(banned.tolist())
        assert set(drawn.items_BG[place].tolist()) <= (allowed or {-1})
        items = distinct.items_BG[place].tolist()
        num_found = min(num_samples, len(allowed))
        assert len(set(items[:num_found])) == num_found
        assert set(items[:num_found]) <= allowed
        assert items[num_found:] == [-1] * (num_samples - num_found)


def test_sums_by_slot_agree_with_logsumexp_and_let_gradients_through() -> None:
    scores_BC = torch.tensor([[1.0, 2.0, float("-inf"), 0.5]], requires_grad=True)
    totals_BW = logsumexp_by_slot(scores_BC, torch.tensor([[0, 0, 0, 1]]), 2)
    torch.testing.assert_close(totals_BW, torch.tensor([[np.log(np.e + np.e**2), 0.5]]).float())
    totals_BW[0, 0].backward()
    torch.testing.assert_close(scores_BC.grad, torch.tensor([[1 / (1 + np.e), np.e / (1 + np.e), 0.0, 0.0]]).float())


# ---- contracts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_arguments_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected at least one sample, a temperature above 0 and top_p above 0"):
        draw(PrefixModel(make_trie()), 3, **options)


def test_exclusions_need_the_constraint() -> None:
    with pytest.raises(ConfigError, match="Sample with the trie"):
        draw(PrefixModel(make_trie()), 3, excluded=[np.array([1])], constrained=False)


def test_what_does_not_belong_is_refused() -> None:
    model = PrefixModel(make_trie())
    with pytest.raises(DataError, match="found 2 arrays, expected one for each of 1 requests"):
        draw(model, 3, excluded=[np.array([1]), np.array([1])])
    model.num_items = 8
    with pytest.raises(ArtifactError, match="found 7 items"):
        draw(model, 3)


def test_a_nan_is_an_error() -> None:
    model = PrefixModel(make_trie())
    model.row = lambda request, prefix: torch.full((SIZES[len(prefix)],), float("nan"))  # type: ignore[method-assign]
    with pytest.raises(OneRecError, match="level 0: 3 of 3 scores are NaN"):
        draw(model, 3)
