import itertools

import numpy as np
import pytest
import torch

from onerec.baselines.tiger import END, PAD, ItemTrie, PrefixSamples, Tiger, TigerSettings, build_t5
from onerec.data.histories import Histories
from tokenizer.table import SemanticIdTable

TINY = TigerSettings(
    num_layers=1, width=32, num_heads=2, head_width=16, feed_forward_width=64, dropout=0.0, max_history_items=3,
    batch_size=32, num_steps=200, learning_rate=2e-3, warmup_steps=10, num_beams=8,
)  # fmt: skip
NUM_ITEMS = 9


@pytest.fixture
def table() -> SemanticIdTable:
    codes = np.array([[item // 3, 2 - item % 3] for item in range(NUM_ITEMS)], dtype=np.int32)
    return SemanticIdTable.of_unique(codes, (4, 3), [str(item) for item in range(NUM_ITEMS)])


def make_histories(sequences, splits=None) -> Histories:
    lengths = [len(sequence) for sequence in sequences]
    items = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items,
        timestamps=np.arange(len(items)),
        splits=np.zeros(len(items), dtype=np.uint8) if splits is None else np.array(splits, dtype=np.uint8),
    )


def untrained(table, **changes) -> Tiger:
    torch.manual_seed(0)
    settings = TINY.model_copy(update=changes)
    return Tiger(build_t5(PrefixSamples(make_histories([[0]]), table, 3).codes, settings), table, settings)


def log_probability(tiger: Tiger, history: np.ndarray, item: int) -> float:
    """Log-probability of an item's codes by one plain forward pass."""
    labels = torch.from_numpy(tiger.codes.tokens_NL[[item]])
    with torch.no_grad():
        logits = tiger.model(**tiger.codes.encode([history], 3), labels=labels).logits
    return logits.log_softmax(-1).gather(-1, labels[..., None]).sum().item()


def test_every_prefix_of_the_training_events_is_a_sample(table):
    histories = make_histories([[0, 1, 2, 3, 4, 5], [7, 8]], splits=[0, 0, 0, 0, 0, 2, 0, 2])
    samples = PrefixSamples(histories.training(), table, 3)
    batch = samples.collate(np.arange(len(samples)))
    # Tokens of item i: level 0 starts at 2, level 1 at 2 + 4.
    tokens = [[2 + item // 3, 6 + 2 - item % 3] for item in range(NUM_ITEMS)]
    expected = [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    for row, history in enumerate(expected):
        run = [token for item in history for token in tokens[item]] + [END]
        assert batch["input_ids"][row].tolist() == run + [PAD] * (7 - len(run))
        assert batch["attention_mask"][row].sum() == len(run)
    assert batch["labels"].tolist() == [tokens[item] for item in (1, 2, 3, 4)]


def test_a_pass_takes_every_sample_once(table):
    samples = PrefixSamples(make_histories([list(range(8))]), table, 3)
    drawn = np.concatenate(samples.batches(batch_size=2, num_batches=7, seed=0))
    np.testing.assert_array_equal(np.sort(drawn[:7]), np.arange(7))
    np.testing.assert_array_equal(np.sort(drawn[7:]), np.arange(7))


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_wide_beams_are_exhaustive_scoring(table, exclude_seen):
    tiger = untrained(table, num_beams=16)
    histories = [np.array([4, 0, 8, 7]), np.array([], dtype=np.int32), np.arange(NUM_ITEMS - 1)]
    ranking = tiger.recommend(histories, NUM_ITEMS + 2, exclude_seen)
    for row, history in enumerate(histories):
        allowed = [item for item in range(NUM_ITEMS) if not (exclude_seen and item in history)]
        scores = {item: log_probability(tiger, history, item) for item in allowed}
        expected = sorted(allowed, key=lambda item: -scores[item])
        assert ranking.items_BK[row].tolist() == expected + [-1] * (NUM_ITEMS + 2 - len(expected))
        np.testing.assert_allclose(
            ranking.scores_BK[row, : len(expected)], [scores[item] for item in expected], atol=1e-4
        )


def test_everything_excluded_leaves_an_empty_list(table):
    ranking = untrained(table).recommend([np.arange(NUM_ITEMS), np.array([1])], 3, exclude_seen=True)
    np.testing.assert_array_equal(ranking.items_BK[0], [-1, -1, -1])
    assert (ranking.items_BK[1] >= 0).all()


def test_items_of_one_semantic_id_come_in_their_buckets_order():
    shared = SemanticIdTable(
        codes_NL=np.array([[0, 0], [0, 1], [0, 0]], dtype=np.int32),
        codes_per_level=(2, 2),
        item_ids=["a", "b", "c"],
        bucket_rank_N=np.array([1, 0, 0], dtype=np.int32),
    )
    tiger = untrained(shared)
    items = tiger.recommend([np.array([1])], 3, exclude_seen=False).items_BK[0].tolist()
    assert items in ([2, 0, 1], [1, 2, 0])
    # One of a bucket excluded leaves the other one within reach.
    assert tiger.recommend([np.array([1, 2])], 3, exclude_seen=True).items_BK[0].tolist() == [0, -1, -1]


def test_constraint_allows_exactly_the_prefixes_of_items_left():
    tokens = np.array([[2, 5], [2, 6], [3, 5]])
    allowed = ItemTrie(tokens, np.zeros(3, dtype=np.int32)).constraint([set(), {2}, {0, 1, 2}])
    for row, items in enumerate([[0, 1, 2], [0, 1], []]):
        for prefix in [(), (2,), (3,), (4,)]:
            runs = [tokens[item].tolist() for item in items if tuple(tokens[item][: len(prefix)]) == prefix]
            expected = sorted({run[len(prefix)] for run in runs}) or [PAD]
            assert allowed(row, torch.tensor([PAD, *prefix])) == expected


def test_learns_a_tiny_pattern_and_generates_real_items_only(table):
    # Item i is always followed by item i + 1, round and round.
    cycle = list(itertools.islice(itertools.cycle(range(NUM_ITEMS)), 40))
    tiger = Tiger.fit(make_histories([cycle[shift:] for shift in range(6)]), table, TINY, show_progress=False)
    histories = [np.array([item - 2, item - 1, item]) % NUM_ITEMS for item in range(NUM_ITEMS)]
    ranking = tiger.recommend(histories, 5, exclude_seen=False)
    np.testing.assert_array_equal(ranking.items_BK[:, 0], [(item + 1) % NUM_ITEMS for item in range(NUM_ITEMS)])
    assert np.isin(ranking.items_BK, np.arange(NUM_ITEMS)).all()


def test_training_is_deterministic(table):
    settings = TINY.model_copy(update={"num_steps": 3})
    first, again = (Tiger.fit(make_histories([[0, 1, 2, 3]]), table, settings, show_progress=False) for _ in range(2))
    torch.testing.assert_close(first.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
