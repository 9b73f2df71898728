"""Own rows, shared rows, unknown and missing values by hand; memory does not grow with the number of values."""

import numpy as np
import torch

from onerec.data.features import key_of
from onerec.model.hashed_embedding import HashedEmbedding


def table(num_shared: int, own: tuple[str, ...] = ("war", "love"), num_hashes: int = 2) -> HashedEmbedding:
    torch.manual_seed(0)
    embedding = HashedEmbedding(len(own), num_shared, num_hashes, width=4)
    embedding.own_keys.copy_(torch.tensor(sorted(map(key_of, own))))
    embedding.own.start()
    return embedding


def keys(*values: str | None) -> torch.Tensor:
    return torch.tensor([key_of(value) for value in values])


def test_frequent_values_have_rows_of_their_own() -> None:
    embedding = table(num_shared=0)
    first, second = sorted(["war", "love"], key=key_of)
    torch.testing.assert_close(embedding(keys(first, second)), embedding.own.weight[2:4])


def test_missing_and_unknown_values_are_zero_in_a_new_table_and_apart_in_training() -> None:
    embedding = table(num_shared=0)
    torch.testing.assert_close(embedding(keys(None, "noir")), torch.zeros(2, 4))
    embedding(keys(None, "noir", "horror")).sum().backward()
    assert embedding.own.weight.grad is not None
    assert embedding.own.weight.grad[:, 0].tolist() == [1, 2, 0, 0]


def test_rare_values_are_means_of_shared_rows() -> None:
    embedding = table(num_shared=50)
    rows = embedding._shared_rows(keys("noir"))[0]
    assert rows.tolist() != [rows[0].item()] * 2
    torch.testing.assert_close(embedding(keys("noir"))[0], embedding.shared.weight[rows].mean(dim=0))
    torch.testing.assert_close(embedding(keys(None)), torch.zeros(1, 4))
    assert (embedding(keys("war")) == embedding.own.weight[2:]).all(dim=1).any()


def test_hashes_spread_and_differ() -> None:
    embedding = table(num_shared=100, num_hashes=3)
    many = torch.tensor([key_of(number) for number in range(20_000)])
    rows = embedding._shared_rows(many)
    assert rows.min() == 0
    assert rows.max() == 99
    for column in rows.T:
        counts = np.bincount(column.numpy(), minlength=100)
        assert counts.min() > 130  # 200 on average; five standard deviations of a fair hash
        assert counts.max() < 275
    joint = np.bincount((rows[:, 0] * 100 + rows[:, 1]).numpy(), minlength=10_000)
    assert joint.max() < 15  # 2 on average: two values that share one row seldom share the other


def test_a_table_without_own_rows_hashes_everything() -> None:
    embedding = table(num_shared=7, own=())
    assert embedding(keys("a", "b", None)).shape == (3, 4)
    torch.testing.assert_close(embedding(keys(None)), torch.zeros(1, 4))


def test_memory_is_bounded_by_the_settings() -> None:
    assert sum(parameter.numel() for parameter in table(num_shared=50).parameters()) == (2 + 2 + 50) * 4
