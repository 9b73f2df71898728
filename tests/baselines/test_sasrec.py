"""SASRec: learns certain successors, sees no future, keeps its best weights, and its sampled loss worked by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from onerec.baselines import sasrec as module
from onerec.baselines.sasrec import SasRec, SasRecNetwork, SasRecSettings, sampled_softmax
from onerec.data.histories import Histories, Split
from onerec.errors import DataError

NUM_ITEMS = 12
EMPTY = np.array([], dtype=np.int32)


def histories_of(*users: list[int]) -> Histories:
    """Users whose events are all for training."""
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    items = np.array([item for user in users for item in user], dtype=np.int32)
    return Histories(offsets, items, np.arange(len(items)), np.full(len(items), Split.TRAIN, dtype=np.uint8))


def cyclic_histories(num_users: int = 60) -> Histories:
    """Users who walk through the catalogue in a circle, for 2 to 9 items."""
    generator = np.random.default_rng(0)
    return histories_of(
        *[
            [int(item) for item in (start + np.arange(length)) % NUM_ITEMS]
            for start, length in zip(
                generator.integers(0, NUM_ITEMS, num_users), generator.integers(2, 10, num_users), strict=True
            )
        ]
    )


def small(**changes: object) -> SasRecSettings:
    return SasRecSettings.model_validate(
        {
            "width": 16,
            "num_blocks": 1,
            "dropout": 0.0,
            "max_history_items": 8,
            "learning_rate": 2e-2,
            "max_positions_per_step": 64,
            "epochs": 15,
            "evaluate_every_epochs": 15,
            **changes,
        }
    )


def growing():
    """A validation score that always improves."""
    scores = iter(range(10_000))
    return lambda _: float(next(scores))


def network(**changes: object) -> SasRecNetwork:
    torch.manual_seed(0)
    return SasRecNetwork(NUM_ITEMS, small(num_blocks=2, **changes).shape).eval()


@pytest.mark.parametrize(
    "changes",
    [{}, {"loss": "sampled_softmax", "num_negatives": 8}, {"block": "pre_norm", "positions": "from_start"}],
    ids=["cross_entropy", "sampled_softmax", "pre_norm"],
)
def test_certain_successors_are_learnt(changes: dict[str, object]) -> None:
    recommender = SasRec.fit(cyclic_histories(), NUM_ITEMS, small(**changes), growing())
    histories = [np.array([first, first + 1, first + 2]) % NUM_ITEMS for first in range(NUM_ITEMS)]
    ranking = recommender.recommend(histories, 1, exclude_seen=False)
    assert (ranking.items_BK[:, 0] == (np.arange(NUM_ITEMS) + 3) % NUM_ITEMS).all()


def test_the_best_validated_weights_are_kept_and_patience_ends_training() -> None:
    scores, states = iter([0.1, 0.5, 0.3, 0.2, 0.4, 0.9]), []

    def validate(recommender: SasRec) -> float:
        states.append(recommender.network.items.weight.detach().clone())
        return next(scores)

    fitted = SasRec.fit(cyclic_histories(), NUM_ITEMS, small(evaluate_every_epochs=2, patience=3), validate)
    assert len(states) == 5  # the best is the second; three more do not improve on it
    torch.testing.assert_close(fitted.network.items.weight, states[1], rtol=0, atol=0)
    assert not torch.equal(states[1], states[4])


def test_the_last_epoch_is_validated_too() -> None:
    validated = []
    SasRec.fit(
        cyclic_histories(),
        NUM_ITEMS,
        small(epochs=3, evaluate_every_epochs=2),
        lambda recommender: float(len(validated) + (validated.append(recommender) or 0)),
    )
    assert len(validated) == 2


def test_sampled_softmax_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    items = nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]))
    states = torch.tensor([[1.0, 2.0], [0.5, 0.0]])  # scores (1, 2, 3, 2) and (0.5, 0, 0.5, 1)
    drawn = torch.tensor([[0, 2, 3], [3, 0, 0]])
    monkeypatch.setattr(module.torch, "randint", lambda *_, **__: drawn)
    loss = sampled_softmax(states, torch.tensor([2, 1]), items, num_negatives=3)
    e = math.exp
    first = -math.log(e(3) / (e(3) + e(1) + e(2)))  # item 2, drawn as a negative of itself, counts once
    second = -math.log(e(0) / (e(0) + e(1) + 2 * e(0.5)))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_every_item_as_negative_gives_the_full_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    items, states, targets = nn.Embedding(5, 3), torch.randn(2, 3), torch.tensor([4, 0])
    monkeypatch.setattr(module.torch, "randint", lambda *_, **__: torch.arange(5).repeat(2, 1))
    full = nn.functional.cross_entropy(states @ items.weight.T, targets)
    torch.testing.assert_close(sampled_softmax(states, targets, items, 5), full)


@pytest.mark.parametrize(("positions", "expected"), [("from_end", [[2, 1, 0], [0, 0, 0]]), ("from_start", [[0, 1, 2]])])
def test_positions_by_hand(positions: str, expected: list[list[int]]) -> None:
    net = network(positions=positions)
    asked = []
    net.positions.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].tolist()))
    net(torch.tensor([[3, 4, 5], [6, 0, 0]]), torch.tensor([3, 1]))
    assert asked == ([expected] if positions == "from_end" else expected)


@pytest.mark.parametrize("block", ["original", "pre_norm"])
@pytest.mark.parametrize("positions", ["from_end", "from_start"])
def test_padding_and_company_change_nothing(block: str, positions: str) -> None:
    net = network(block=block, positions=positions)
    alone = net(torch.tensor([[3, 9]]), torch.tensor([2]))
    together = net(torch.tensor([[3, 9, 11, 11], [1, 2, 3, 4]]), torch.tensor([2, 4]))
    torch.testing.assert_close(together[:1, :2], alone)


@pytest.mark.parametrize("block", ["original", "pre_norm"])
def test_the_future_does_not_leak(block: str) -> None:
    net = network(block=block)
    first = net(torch.tensor([[3, 9, 7]]), torch.tensor([3]))
    second = net(torch.tensor([[3, 9, 1]]), torch.tensor([3]))
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])


def test_original_block_by_hand() -> None:
    """One item: attention mixes nothing, so a block is norm + value path, then the feed-forward on its norm."""
    block = network().blocks[0]
    x = torch.randn(1, 1, 16)
    value = block.key_value(x)[..., 16:]
    y = block.feed_forward_norm(block.attention_norm(x) + block.output(value))
    torch.testing.assert_close(block(x), y + block.feed_forward(y))


def test_users_without_history_get_the_order_of_the_mean_item() -> None:
    recommender = SasRec(network(), small())
    weights = recommender.network.items.weight
    expected = (weights @ weights.mean(dim=0)).argsort(descending=True, stable=True).tolist()
    alone = recommender.recommend([EMPTY, EMPTY], NUM_ITEMS, exclude_seen=False)
    mixed = recommender.recommend([EMPTY, np.array([3, 4])], NUM_ITEMS, exclude_seen=False)
    assert alone.items_BK.tolist() == [expected, expected]
    assert mixed.items_BK[0].tolist() == expected
    np.testing.assert_allclose(mixed.scores_BK[0], alone.scores_BK[0], rtol=1e-6)


def test_only_the_newest_items_are_read_but_all_are_excluded() -> None:
    recommender = SasRec(network(), small())
    long = np.arange(NUM_ITEMS - 1)
    short = recommender.recommend([long[-8:]], 3, exclude_seen=False)
    whole = recommender.recommend([long], 3, exclude_seen=False)
    np.testing.assert_array_equal(whole.items_BK, short.items_BK)
    unseen = recommender.recommend([long], 3, exclude_seen=True)
    assert unseen.items_BK.tolist() == [[NUM_ITEMS - 1, -1, -1]]


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax"])
def test_the_seed_fixes_everything(loss: str) -> None:
    settings = {"loss": loss, "dropout": 0.3, "epochs": 2}
    runs = [
        SasRec.fit(cyclic_histories(), NUM_ITEMS, small(seed=seed, **settings), growing()).network.items.weight
        for seed in (0, 0, 1)
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.allclose(runs[0], runs[2])


def test_users_with_one_event_train_nothing_and_break_nothing() -> None:
    lonely = [[item % NUM_ITEMS] for item in range(200)]  # enough of them to fill steps of their own
    few = small(epochs=2)
    fitted = SasRec.fit(histories_of(*lonely, [1, 2, 3], [4, 5]), NUM_ITEMS, few, growing())
    without = SasRec.fit(histories_of([1, 2, 3], [4, 5]), NUM_ITEMS, few, growing())
    torch.testing.assert_close(fitted.network.state_dict(), without.network.state_dict(), rtol=0, atol=0)


def test_no_pair_of_events_is_an_error() -> None:
    with pytest.raises(DataError, match="no user with two training events"):
        SasRec.fit(histories_of([1], [2]), NUM_ITEMS, small(), growing())
