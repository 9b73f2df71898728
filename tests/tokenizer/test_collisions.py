import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.reference import assign_residual
from tokenizer.collisions import CollisionCounts, Resolution, bucket_ranks, place_items, resolve_collisions
from tokenizer.config import CollisionSettings
from tokenizer.errors import DataError
from tokenizer.table import SemanticIdTable

LINE = [torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [1.0], [-1.5]])]


def _resolve(
    vectors: np.ndarray, codebooks: list[torch.Tensor], popularity: np.ndarray, policy: str, **more: int
) -> Resolution:
    latents = torch.from_numpy(vectors.astype(np.float32))
    codes = assign_residual(latents, codebooks)[0].numpy()
    settings = CollisionSettings.model_validate({"policy": policy, **more})
    return resolve_collisions(codes, codebooks, lambda rows: latents[rows], popularity, settings)


def test_ranks_go_by_popularity_then_index() -> None:
    keys, popularity = np.array([7, 3, 7, 7, 3]), np.array([1, 5, 9, 1, 5])
    np.testing.assert_array_equal(bucket_ranks(keys, popularity), [1, 0, 0, 2, 1])
    assert len(bucket_ranks(np.empty(0, dtype=np.int64), np.empty(0))) == 0


def test_suffix_worked_by_hand() -> None:
    """Items 0, 1, 2 share (0, 0); 1 is the most popular; item 3 is alone. The level holds twice the largest bucket."""
    result = _resolve(np.array([[0.1], [0.0], [0.2], [10.9]]), LINE, np.array([1, 4, 1, 0]), "suffix")
    np.testing.assert_array_equal(result.codes_NL, [[0, 0, 1], [0, 0, 0], [0, 0, 2], [1, 1, 0]])
    assert result.codes_per_level == (2, 3, 6)
    assert result.num_moved == 0


def test_suffix_level_too_small_sends_the_last_to_the_nearest_code() -> None:
    result = _resolve(np.array([[0.1], [0.0], [0.2]]), LINE, np.array([1, 4, 1]), "suffix", suffix_codes=2)
    np.testing.assert_array_equal(result.codes_NL, [[0, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert result.num_moved == 1


def test_reassign_worked_by_hand() -> None:
    """Four items at (0, 0): the popular one stays, -0.1 takes the nearer of 1 and -1.5, and the last goes to prefix 1.

    Order: item 1 (popular) keeps code 0; item 0 at -0.1 is 1.1 from code 1 and 1.4 from code 2; item 2 gets code 2;
    item 3 finds the prefix full, goes to prefix 1, residual -9.9, nearest of {0, 1, -1.5} is code 2.
    """
    result = _resolve(np.array([[-0.1], [0.0], [0.2], [0.1]]), LINE, np.array([1, 4, 1, 0]), "reassign")
    np.testing.assert_array_equal(result.codes_NL, [[0, 1], [0, 0], [0, 2], [1, 2]])
    assert result.num_moved == 3
    np.testing.assert_array_equal(result.bucket_rank_N, 0)


def test_bucket_keeps_codes_and_ranks() -> None:
    result = _resolve(np.array([[0.1], [0.0], [10.0]]), LINE, np.array([1, 4, 0]), "bucket")
    np.testing.assert_array_equal(result.codes_NL, [[0, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(result.bucket_rank_N, [1, 0, 0])


@pytest.mark.parametrize(("policy", "more"), [("reassign", {}), ("suffix", {"suffix_codes": 1})])
def test_a_catalogue_larger_than_the_code_space_is_refused(policy: str, more: dict[str, int]) -> None:
    with pytest.raises(DataError, match="found 7 items for 6 free places in 2 x 3 codes"):
        _resolve(np.zeros((7, 1)), LINE, np.zeros(7), policy, **more)


def test_a_catalogue_that_fills_the_code_space_exactly_is_placed() -> None:
    result = _resolve(np.zeros((6, 1)), LINE, np.zeros(6), "reassign")
    assert CollisionCounts.of(result.codes_NL, (2, 3)).num_distinct == 6


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    fill=st.floats(0.1, 1.0),
    policy=st.sampled_from(["suffix", "reassign", "bucket"]),
    suffix_codes=st.integers(1, 3),
)
def test_properties(seed: int, sizes: list[int], fill: float, policy: str, suffix_codes: int) -> None:
    """Unique IDs in range, only items beyond a bucket's room move, the same input gives the same output."""
    random = np.random.default_rng(seed)
    codebooks = [torch.from_numpy(random.normal(size=(size, 2)).astype(np.float32)) for size in sizes]
    num_items = max(1, int(fill * np.prod(sizes)))
    vectors = random.normal(size=(num_items, 2)) * random.choice([0.1, 1.0])
    popularity = random.integers(0, 3, num_items)
    before = assign_residual(torch.from_numpy(vectors.astype(np.float32)), codebooks)[0].numpy()
    result = _resolve(vectors, codebooks, popularity, policy, suffix_codes=suffix_codes)
    again = _resolve(vectors, codebooks, popularity, policy, suffix_codes=suffix_codes)
    np.testing.assert_array_equal(result.codes_NL, again.codes_NL)
    ids = [str(row) for row in range(num_items)]
    SemanticIdTable(result.codes_NL, result.codes_per_level, ids, result.bucket_rank_N)  # checks ranges and uniqueness
    if policy != "bucket":
        assert CollisionCounts.of(result.codes_NL, result.codes_per_level).num_colliding == 0
    kept = (result.codes_NL[:, : len(sizes)] == before).all(axis=1)
    assert (~kept).sum() <= result.num_moved
    room = {"suffix": suffix_codes, "reassign": 1, "bucket": num_items}[policy]
    _, inverse, counts = np.unique(before, axis=0, return_inverse=True, return_counts=True)
    assert result.num_moved == np.maximum(counts - room, 0).sum()
    first = bucket_ranks(inverse, popularity) < room
    assert kept[first].all()


def test_placed_items_keep_their_places() -> None:
    """Room for two: one is taken by an old item, so the second newcomer moves on."""
    latents = torch.zeros(2, 1)
    result = place_items(
        np.zeros((2, 2), dtype=np.int32),
        LINE,
        lambda rows: latents[rows],
        np.array([0, 3]),
        capacity=2,
        policy="suffix",
        placed_codes_PL=np.array([[0, 0]], dtype=np.int32),
        placed_ranks_P=np.array([0], dtype=np.int32),
    )
    np.testing.assert_array_equal(result.codes_NL, [[0, 1, 0], [0, 0, 1]])


def test_counts() -> None:
    counts = CollisionCounts.of(np.array([[0, 1], [0, 1], [1, 1], [0, 1]]), (2, 2))
    assert (counts.num_distinct, counts.num_colliding, counts.largest_bucket) == (2, 3, 3)
