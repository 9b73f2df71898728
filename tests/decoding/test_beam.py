"""Beam search against two oracles on the real model, and its promises on random tries."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onerec.decoding.beam import BeamResult, beam_search
from onerec.decoding.trie import Trie
from onerec.errors import ArtifactError, ConfigError, DataError, OneRecError
from onerec.model.configuration import BOS_TOKEN, OneRecConfig
from onerec.model.onerec import OneRec

SIZES = (6, 5, 4)


def make_catalogue(num_items: int, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> np.ndarray:
    """Distinct random codes (N, L)."""
    flat_N = np.random.default_rng(seed).choice(int(np.prod(sizes)), num_items, replace=False)
    return np.stack(np.unravel_index(flat_N, sizes), axis=1)


def make_model(codes_NL: np.ndarray, sizes: tuple[int, ...] = SIZES, seed: int = 0, **changes: Any) -> OneRec:
    torch.manual_seed(seed)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 8, **changes}
    config = OneRecConfig(codes_per_level=sizes, num_items=len(codes_NL), **shape)
    model = OneRec(config).eval()
    model.set_codes(codes_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # far from uniform, so that beams differ
        if model.code_heads.repeats is not None:
            model.code_heads.repeats.weights_L.fill_(-0.1)
    return model


def make_histories(num_items: int, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    items_BS = torch.randint(num_items, (len(lengths), max(lengths)), generator=generator)
    return items_BS, torch.tensor(lengths)


def flat_tokens(model: OneRec, codes_NL: np.ndarray) -> Tensor:
    return torch.from_numpy(codes_NL) + torch.tensor(model.config.level_offsets)


def generate(
    model: OneRec, codes_NL: np.ndarray, items_BS: Tensor, lengths_B: Tensor, num_beams: int, k: int
) -> tuple[Tensor, Tensor | None]:
    """Items and scores (B, K) of transformers' own constrained beam search; a single beam has no scores."""
    tokens = [tuple(row) for row in flat_tokens(model, codes_NL).tolist()]
    visible_BS = torch.arange(items_BS.shape[1]) < lengths_B[:, None]
    generated = model.generate(
        input_ids=(items_BS + 1) * visible_BS,
        attention_mask=visible_BS.long(),
        num_beams=num_beams,
        num_return_sequences=k,
        do_sample=False,
        length_penalty=0.0,
        min_new_tokens=codes_NL.shape[1],
        max_new_tokens=codes_NL.shape[1],
        prefix_allowed_tokens_fn=lambda _, prefix: sorted(
            {row[len(prefix) - 1] for row in tokens if list(row[: len(prefix) - 1]) == prefix[1:].tolist()}
        ),
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=False,
    )
    items_BK = torch.tensor([tokens.index(tuple(row)) for row in generated.sequences[:, 1:].tolist()]).view(-1, k)
    return items_BK, None if num_beams == 1 else generated.sequences_scores.view(-1, k)


@torch.no_grad()
def score_all_items(model: OneRec, codes_NL: np.ndarray, items_BS: Tensor, lengths_B: Tensor) -> Tensor:
    """Log-probability (B, N) of every item by teacher forcing."""
    tokens_NL = flat_tokens(model, codes_NL)
    inputs_NL = torch.cat([torch.full((len(tokens_NL), 1), BOS_TOKEN), tokens_NL[:, :-1]], dim=1)
    rows = []
    for history_S, length in zip(items_BS, lengths_B, strict=True):
        input_ids = (history_S[:length] + 1).expand(len(tokens_NL), -1)
        log_probs_NLV = model(input_ids=input_ids, decoder_input_ids=inputs_NL).logits.log_softmax(-1)
        rows.append(log_probs_NLV.gather(2, tokens_NL[..., None]).sum(dim=(1, 2)))
    return torch.stack(rows)


class TableModel:
    """Log-probabilities that depend on the level, the request and the whole prefix, from a seed or a function."""

    def __init__(self, trie: Trie, rows: list[int], make_row: Any = None) -> None:
        self.config = SimpleNamespace(codes_per_level=list(trie.codes_per_level), num_items=trie.num_items)
        self.num_requests = len(rows)
        self._rows = rows
        self._make_row = make_row or self._random_row

    @staticmethod
    def _random_row(row: int, prefix: tuple[int, ...], size: int) -> Tensor:
        # Coarse logits, so that equal scores are common.
        logits = np.random.default_rng([row, *prefix]).integers(0, 3, size)
        return torch.from_numpy(logits).float().log_softmax(-1)

    def new_cache(self) -> "TableModel":
        self._prefixes: list[list[tuple[int, ...]]] = [[()] for _ in self._rows]
        return self

    def reorder(self, parents_BW: Tensor) -> None:
        self._prefixes = [[row[p] for p in parents] for row, parents in zip(self._prefixes, parents_BW, strict=True)]

    def decode_step(self, codes_BW: Tensor | None, level: int, context: Any, cache: "TableModel") -> Tensor:
        assert cache is self
        if codes_BW is not None:
            self._prefixes = [
                [(*prefix, int(code)) for prefix, code in zip(prefixes, codes, strict=True)]
                for prefixes, codes in zip(self._prefixes, codes_BW, strict=True)
            ]
        size = self.config.codes_per_level[level]
        return torch.stack(
            [
                torch.stack([self._make_row(row, prefix, size) for prefix in prefixes])
                for row, prefixes in zip(self._rows, self._prefixes, strict=True)
            ]
        )

    def score(self, row: int, codes: np.ndarray) -> float:
        score = torch.zeros(())
        for level, code in enumerate(codes):
            prefix = tuple(int(one) for one in codes[:level])
            score = score + self._make_row(row, prefix, self.config.codes_per_level[level])[int(code)]
        return float(score)


def search(model: TableModel, trie: Trie, num_beams: int, k: int, excluded: Any = None) -> BeamResult:
    return beam_search(model, model, trie, num_beams, k, excluded)


# ---- oracles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["causal", "bidirectional"])
def test_beams_as_wide_as_the_catalogue_give_the_exhaustive_ranking(context: str) -> None:
    codes_NL = make_catalogue(50)
    model = make_model(codes_NL)
    model.encoder.causal = context == "causal"
    items_BS, lengths_B = make_histories(50, (8, 1, 5))
    result = beam_search(model, model.encode(items_BS, lengths_B), Trie.from_table(codes_NL, SIZES), 50, 50)
    expected = score_all_items(model, codes_NL, items_BS, lengths_B).sort(dim=1, descending=True)
    torch.testing.assert_close(result.items_BK, expected.indices)
    torch.testing.assert_close(result.scores_BK, expected.values)


def test_exclusions_leave_the_exhaustive_ranking_of_the_rest() -> None:
    codes_NL = make_catalogue(50)
    model = make_model(codes_NL)
    items_BS, lengths_B = make_histories(50, (8, 1, 5))
    excluded = [items_BS[row, :length].numpy() for row, length in enumerate(lengths_B)]
    trie = Trie.from_table(codes_NL, SIZES)
    result = beam_search(model, model.encode(items_BS, lengths_B), trie, 50, 50, excluded)
    scores_BN = score_all_items(model, codes_NL, items_BS, lengths_B)
    for row, items in enumerate(excluded):
        num_allowed = 50 - len(set(items.tolist()))
        scores_BN[row, items] = float("-inf")
        expected = scores_BN[row].sort(descending=True)
        torch.testing.assert_close(result.items_BK[row, :num_allowed], expected.indices[:num_allowed])
        torch.testing.assert_close(result.scores_BK[row, :num_allowed], expected.values[:num_allowed])
        assert (result.items_BK[row, num_allowed:] == -1).all()
        assert result.scores_BK[row, num_allowed:].isneginf().all()


@pytest.mark.parametrize("changes", [{}, {"bos_reads_context": True, "prefix_vectors": True, "repeat_bias": True}])
@pytest.mark.parametrize(("num_beams", "k"), [(1, 1), (4, 4), (10, 7)])
def test_same_beams_as_constrained_generate(num_beams: int, k: int, changes: dict[str, object]) -> None:
    codes_NL = make_catalogue(60)
    model = make_model(codes_NL, **changes)
    items_BS, lengths_B = make_histories(60, (8, 3, 1, 6))
    result = beam_search(model, model.encode(items_BS, lengths_B), Trie.from_table(codes_NL, SIZES), num_beams, k)
    items_BK, scores_BK = generate(model, codes_NL, items_BS, lengths_B, num_beams, k)
    torch.testing.assert_close(result.items_BK, items_BK)
    if num_beams > 1:
        torch.testing.assert_close(result.scores_BK, scores_BK, rtol=0, atol=1e-4)


# ---- promises ----------------------------------------------------------------------------------------------------


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, Trie, int, int, list[np.ndarray]]:
    """A random catalogue with shared codes, a width, a list length, and exclusions of three requests."""
    sizes = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    num_items = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    codes_NL = rng.integers(0, sizes, (num_items, len(sizes)))
    trie = Trie.from_table(codes_NL, sizes, rng.permutation(num_items))
    num_beams = draw(st.integers(1, 28))
    k = draw(st.integers(1, num_beams))
    excluded = [rng.choice(num_items, draw(st.integers(0, num_items)), replace=False) for _ in range(3)]
    return codes_NL, trie, num_beams, k, excluded


@given(searches())
@settings(deadline=None, max_examples=40)
def test_distinct_allowed_items_as_many_as_there_are(case: Any) -> None:
    codes_NL, trie, num_beams, k, excluded = case
    model = TableModel(trie, rows=[0, 1, 2])
    result = search(model, trie, num_beams, k, excluded)
    for row, banned in enumerate(excluded):
        items, scores = result.items_BK[row].tolist(), result.scores_BK[row].tolist()
        num_found = min(k, trie.num_items - len(banned))
        assert items[num_found:] == [-1] * (k - num_found)
        assert scores[num_found:] == [float("-inf")] * (k - num_found)
        found = items[:num_found]
        assert len(set(found)) == num_found
        assert set(found) <= set(range(trie.num_items)) - set(banned.tolist())
        order = [(-score, int(trie.rank_of_item[item])) for score, item in zip(scores, found, strict=False)]
        assert order == sorted(order)
        assert [model.score(row, codes_NL[item]) for item in found] == scores[:num_found]


@given(searches())
@settings(deadline=None, max_examples=40)
def test_wide_beams_are_exhaustive_to_the_last_tie(case: Any) -> None:
    codes_NL, trie, _, _, excluded = case
    model = TableModel(trie, rows=[0, 1, 2])
    result = search(model, trie, trie.num_items, trie.num_items, excluded)
    for row, banned in enumerate(excluded):
        allowed = np.setdiff1d(np.arange(trie.num_items), banned)
        expected = sorted(allowed, key=lambda item: (-model.score(row, codes_NL[item]), int(trie.rank_of_item[item])))
        assert result.items_BK[row, : len(allowed)].tolist() == expected


@given(searches())
@settings(deadline=None, max_examples=40)
def test_a_batch_is_each_request_alone(case: Any) -> None:
    _, trie, num_beams, k, excluded = case
    together = search(TableModel(trie, rows=[0, 1, 2]), trie, num_beams, k, excluded)
    for row, banned in enumerate(excluded):
        alone = search(TableModel(trie, rows=[row]), trie, num_beams, k, [banned])
        torch.testing.assert_close(together.items_BK[row], alone.items_BK[0])
        torch.testing.assert_close(together.scores_BK[row], alone.scores_BK[0], rtol=0, atol=0)


def test_histories_of_different_lengths_in_one_batch_score_as_alone() -> None:
    codes_NL = make_catalogue(60)
    model, trie = make_model(codes_NL), Trie.from_table(codes_NL, SIZES)
    items_BS, lengths_B = make_histories(60, (8, 1, 4))
    together = beam_search(model, model.encode(items_BS, lengths_B), trie, 10, 10)
    for row, length in enumerate(lengths_B.tolist()):
        context = model.encode(items_BS[row : row + 1, :length], lengths_B[row : row + 1])
        alone = beam_search(model, context, trie, 10, 10)
        torch.testing.assert_close(together.items_BK[row], alone.items_BK[0])
        torch.testing.assert_close(together.scores_BK[row], alone.scores_BK[0])


def test_equal_logits_give_the_catalogue_in_trie_order() -> None:
    trie = Trie.from_table(make_catalogue(40), SIZES)
    model = TableModel(trie, [0], lambda row, prefix, size: torch.full((size,), -np.log(size), dtype=torch.float32))
    assert search(model, trie, 12, 12).items_BK.tolist() == [trie.item_of_rank[:12].tolist()]


def test_items_of_probability_zero_come_last_and_excluded_ones_never() -> None:
    codes_NL = make_catalogue(40)
    trie = Trie.from_table(codes_NL, SIZES)

    def only_code_zero(row: int, prefix: tuple[int, ...], size: int) -> Tensor:
        return torch.where(torch.arange(size) == 0, 0.0, float("-inf"))

    excluded = [np.arange(5)]
    result = search(TableModel(trie, [0], only_code_zero), trie, 40, 40, excluded)
    assert sorted(result.items_BK[0, :35].tolist()) == list(range(5, 40))
    assert result.items_BK[0, 35:].tolist() == [-1] * 5


def test_a_favoured_code_that_no_item_has_is_never_taken() -> None:
    codes_NL = np.array([[0, 0], [1, 1], [2, 2]])
    trie = Trie.from_table(codes_NL, (4, 4))

    def favour_code_three(row: int, prefix: tuple[int, ...], size: int) -> Tensor:
        return torch.tensor([-20.0, -21.0, -22.0, 0.0])

    result = search(TableModel(trie, [0], favour_code_three), trie, 2, 2)
    assert result.items_BK.tolist() == [[0, 1]]
    torch.testing.assert_close(result.scores_BK, torch.tensor([[-40.0, -42.0]]))


def test_a_request_with_everything_excluded_gets_nothing_and_leaves_its_neighbour_alone() -> None:
    trie = Trie.from_table(make_catalogue(40), SIZES)
    result = search(TableModel(trie, [0, 1]), trie, 5, 5, [np.arange(40), np.array([], dtype=np.int64)])
    assert result.items_BK[0].tolist() == [-1] * 5
    torch.testing.assert_close(
        result.items_BK[1:], search(TableModel(trie, [1]), trie, 5, 5).items_BK, msg="the neighbour changed"
    )
    nothing = search(TableModel(trie, [0]), trie, 5, 5, [np.arange(40)])
    assert nothing.items_BK.tolist() == [[-1] * 5]


# ---- contracts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 6])
def test_more_items_than_beams_are_refused(k: int) -> None:
    trie = Trie.from_table(make_catalogue(40), SIZES)
    with pytest.raises(ConfigError, match=f"found {k}, expected 1 to num_beams = 5"):
        search(TableModel(trie, [0]), trie, 5, k)


def test_the_trie_of_another_catalogue_is_refused() -> None:
    trie, other = (Trie.from_table(make_catalogue(size), SIZES) for size in (40, 39))
    with pytest.raises(ArtifactError, match=r"found 39 items .* built for 40 items"):
        search(TableModel(trie, [0]), other, 5, 5)


def test_exclusions_of_another_batch_are_refused() -> None:
    trie = Trie.from_table(make_catalogue(40), SIZES)
    with pytest.raises(DataError, match="found 1 arrays, expected one for each of 2 requests"):
        search(TableModel(trie, [0, 1]), trie, 5, 5, [np.arange(3)])


@pytest.mark.parametrize("bad_level", [0, 1, 2])
def test_a_nan_is_an_error_that_names_its_level(bad_level: int) -> None:
    trie = Trie.from_table(make_catalogue(40), SIZES)

    def nan_at_one_level(row: int, prefix: tuple[int, ...], size: int) -> Tensor:
        return torch.full((size,), float("nan") if len(prefix) == bad_level else -1.0)

    with pytest.raises(OneRecError, match=rf"level {bad_level}: \d+ of \d+ scores are NaN"):
        search(TableModel(trie, [0], nan_at_one_level), trie, 5, 5)
