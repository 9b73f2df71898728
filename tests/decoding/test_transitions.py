"""What followed what in the log: by hand, by definition over random logs, and as an opinion on what was found."""

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from onerec.bundle import Bundle, build_trie
from onerec.config import DecodingSettings, RunConfig
from onerec.data.histories import Histories
from onerec.decoding import transitions
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.transitions import DECAY, FLOOR, REACH, REVERSE, SHRINKAGE, Transitions, newest_items
from onerec.errors import ConfigError
from onerec.evaluation.settings import EvaluationSettings
from onerec.run_recommender import run_recommender
from tokenizer.settings import load_settings

NUM_ITEMS = 40
HISTORIES = [np.array([3, 7, 3]), np.array([], dtype=np.int64), np.array([9, 1, 30, 2, 11, 12, 13, 14, 4, 5])]


def make_log(users: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, users)])
    items = np.concatenate([np.array(user, dtype=np.int32) for user in users])
    return Histories(offsets, items, np.arange(len(items)), np.zeros(len(items), dtype=np.uint8))


def random_log(seed: int = 0, num_items: int = NUM_ITEMS) -> Histories:
    rng = np.random.default_rng(seed)
    return make_log([rng.integers(num_items, size=rng.integers(1, 15)).tolist() for _ in range(30)])


def opinion_of(memory: Transitions, history: list[int], items: list[int]) -> list[float]:
    newest_BR = newest_items(torch.tensor([[*history, 0]]), torch.tensor([len(history)]))
    logits_BW: torch.Tensor = memory.opinion(newest_BR, torch.tensor([items]))
    return logits_BW[0].tolist()


def shares_by_definition(log: Histories, num_items: int) -> np.ndarray:
    counts: dict[tuple[int, int], float] = defaultdict(float)
    for first, last in zip(log.offsets[:-1], log.offsets[1:], strict=True):
        user = log.items[first:last].tolist()
        for place, item in enumerate(user):
            for back in range(1, min(REACH, place) + 1):
                counts[user[place - back], item] += DECAY ** (back - 1)
    both_NN = np.zeros((num_items, num_items))
    for (before, after), count in counts.items():
        both_NN[before, after] += count
        both_NN[after, before] += REVERSE * count
    return both_NN / (both_NN.sum(axis=1, keepdims=True) + SHRINKAGE)


def test_by_hand() -> None:
    memory = Transitions.of(1.0, make_log([[0, 1, 2], [0, 1], [3]]), 4)
    assert memory is not None
    after_0 = 2 + DECAY  # item 1 twice, item 2 two events later
    total_1 = 1 + REVERSE * 2  # item 2 after it, item 0 twice before it
    expected = [FLOOR, FLOOR + 2 / (after_0 + SHRINKAGE), FLOOR + DECAY / (after_0 + SHRINKAGE), FLOOR]
    assert_allclose(np.exp(opinion_of(memory, [0], [0, 1, 2, 3])), expected, rtol=1e-5)
    of_both = FLOOR + 1 / (total_1 + SHRINKAGE) + DECAY * DECAY / (after_0 + SHRINKAGE)
    assert_allclose(np.exp(opinion_of(memory, [0, 1], [2, -1])), [of_both, FLOOR], rtol=1e-5)
    assert_allclose(np.exp(opinion_of(memory, [3], [0, 1, 2, 3])), FLOOR, rtol=1e-5)
    assert_allclose(np.exp(opinion_of(memory, [], [1])), FLOOR, rtol=1e-5)


@given(seed=st.integers(0, 10**6), num_items=st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_opinions_are_those_of_the_definition(seed: int, num_items: int) -> None:
    log, rng = random_log(seed, num_items), np.random.default_rng(seed)
    memory, shares_NN = Transitions.of(1.0, log, num_items), shares_by_definition(log, num_items)
    assert memory is not None
    histories = [rng.integers(num_items, size=rng.integers(0, 12)) for _ in range(5)]
    lengths_B = torch.tensor([len(history) for history in histories])
    items_BS = torch.zeros(5, max(1, int(lengths_B.max())), dtype=torch.int64)
    for row, history in enumerate(histories):
        items_BS[row, : len(history)] = torch.from_numpy(history)
    wanted_BW = torch.from_numpy(rng.integers(num_items, size=(5, 9)))
    found_BW = memory.opinion(newest_items(items_BS, lengths_B), wanted_BW)
    for row, history in enumerate(histories):
        newest = history[::-1][:REACH]
        mass_N = sum((DECAY**back * shares_NN[item] for back, item in enumerate(newest)), np.zeros(num_items))
        assert_allclose(found_BW[row].exp(), FLOOR + mass_N[wanted_BW[row]], rtol=1e-4)


def test_only_the_likeliest_followers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log([[0, 1], [0, 1], [0, 2], [0, 2], [0, 3]])
    monkeypatch.setattr(transitions, "MAX_FOLLOWERS", 2)
    memory = Transitions.of(1.0, log, 4)
    assert memory is not None
    assert memory.followers[memory.starts_N[0] : memory.starts_N[1]].tolist() == [1, 2]
    assert (np.diff(memory.starts_N) <= 2).all()
    assert_allclose(np.exp(opinion_of(memory, [0], [3])), FLOOR, rtol=1e-5)


def test_a_log_without_a_pair_knows_nothing() -> None:
    memory = Transitions.of(1.0, make_log([[0], [2]]), 4)
    assert memory is not None
    assert_allclose(np.exp(opinion_of(memory, [0, 2], [2, 3])), FLOOR, rtol=1e-5)


def test_items_that_joined_later_follow_nothing() -> None:
    memory = Transitions.of(1.0, make_log([[0, 1, 2]]), 3)
    assert memory is not None
    assert opinion_of(memory, [1, 7], [2, 7, 3]) == pytest.approx(
        [*np.log(FLOOR + DECAY * shares_by_definition(make_log([[0, 1, 2]]), 3)[1, [2]]), *[np.log(FLOOR)] * 2]
    )


def test_without_a_weight_there_is_none(tmp_path: Path) -> None:
    assert Transitions.of(0.0, random_log(), NUM_ITEMS) is None
    assert Transitions.load(0.0, tmp_path) is None


@pytest.fixture(scope="module")
def run(small_run: Any) -> Any:
    """One whose newest items have followers, with a say for them."""
    data = dataclasses.replace(small_run.data, histories=random_log())
    decoding = DecodingSettings(num_beams=12, transitions=0.8)
    config = small_run.config.model_copy(update={"decoding": decoding, "evaluation": EvaluationSettings(ks=(10,))})
    return dataclasses.replace(small_run, data=data, config=config)


@pytest.mark.parametrize("exact", [False, True])
def test_lists_are_in_the_order_of_both(run: Any, exact: bool) -> None:
    memory = Transitions.of(0.8, random_log(), NUM_ITEMS)
    trie = build_trie(run.table)
    alone, both = (OneRecRecommender(run.model, trie, 12, transitions=each) for each in (None, memory))
    changed = 0
    for history in HISTORIES:
        context = both.encode([history])
        found = alone.search(context, 12).items_BK, alone.search(context, 12).scores_BK
        if exact:
            found = alone.search_exactly(context, 12)[0].items_BK, alone.search_exactly(context, 12)[0].scores_BK
        ranked = both.search_exactly(context, 5)[0] if exact else both.search(context, 5)
        opinions_W = torch.tensor(opinion_of(memory, history.tolist(), found[0][0].tolist()))  # type: ignore[arg-type]
        scores_W = torch.from_numpy(found[1][0]) + 0.8 * opinions_W.log_softmax(0)
        order_W = scores_W.argsort(descending=True, stable=True)[:5]
        assert_array_equal(ranked.items_BK[0], found[0][0][order_W])
        assert_allclose(ranked.scores_BK[0], scores_W[order_W], rtol=1e-5)
        changed += ranked.items_BK[0].tolist() != found[0][0, :5].tolist()
    assert changed


def test_a_bundle_recommends_as_its_run_was_evaluated(run: Any, tmp_path: Path) -> None:
    bundle = Bundle.load(run.write_bundle(tmp_path / "bundle"))
    evaluated = run_recommender(run.config, run.model, run.table, run.data.histories)
    beams = run_recommender(run.config, run.model, run.table, run.data.histories, beams_alone=True)
    expected, found, alone = (each.recommend(HISTORIES, 6, True) for each in (evaluated, bundle.recommender(), beams))
    assert_array_equal(found.items_BK, expected.items_BK)
    assert_array_equal(found.scores_BK, expected.scores_BK)
    assert (found.items_BK != alone.items_BK).any()


def test_whole_lists_are_not_ordered_by_what_followed_what() -> None:
    lists = ["model.session_items=2", "data.sessions={}", "decoding.transitions=1"]
    with pytest.raises(ConfigError, match=r"decoding\.transitions: found 1.0 beside model\.session_items 2"):
        load_settings(RunConfig, None, lists)
