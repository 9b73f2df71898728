import numpy as np
import pytest
import torch

from onerec.decoding.beam import beam_search
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec

SIZES = (5, 4, 4)
NUM_ITEMS, MAX_HISTORY_ITEMS = 40, 6


@pytest.fixture(scope="module")
def recommender() -> OneRecRecommender:
    flat_N = np.random.default_rng(0).choice(int(np.prod(SIZES)), NUM_ITEMS, replace=False)
    codes_NL = np.stack(np.unravel_index(flat_N, SIZES), axis=1)
    torch.manual_seed(0)
    config = OneRecConfig(
        codes_per_level=SIZES, num_items=NUM_ITEMS, d_model=16, d_ff=32, max_history_items=MAX_HISTORY_ITEMS
    )
    model = OneRec(config)
    model.set_codes(codes_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return OneRecRecommender(model, Trie.from_table(codes_NL, SIZES), num_beams=10)


def make_histories(num_requests: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, NUM_ITEMS, rng.integers(0, 12)).astype(np.int32) for _ in range(num_requests)]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_many_histories_of_mixed_lengths_are_each_searched_as_alone(
    recommender: OneRecRecommender, exclude_seen: bool
) -> None:
    histories = make_histories(70)  # several batches; some empty, some longer than the model reads
    ranking = recommender.recommend(histories, 10, exclude_seen)
    for row, history in enumerate(histories):
        recent = torch.from_numpy(history[-MAX_HISTORY_ITEMS:].astype(np.int64))[None]
        context = recommender.model.encode(recent, torch.tensor([recent.shape[1]]))
        excluded = [history] if exclude_seen else None
        alone = beam_search(recommender.model, context, recommender.trie, 10, 10, excluded)
        np.testing.assert_array_equal(ranking.items_BK[row], alone.items_BK[0])
        np.testing.assert_allclose(ranking.scores_BK[row], alone.scores_BK[0], rtol=1e-5)


def test_items_older_than_the_model_reads_are_excluded_too(recommender: OneRecRecommender) -> None:
    history = np.arange(NUM_ITEMS - 3)
    ranking = recommender.recommend([history], 10, exclude_seen=True)
    assert set(ranking.items_BK[0, :3].tolist()) == {NUM_ITEMS - 3, NUM_ITEMS - 2, NUM_ITEMS - 1}
    assert ranking.items_BK[0, 3:].tolist() == [-1] * 7


def test_more_items_than_beams_are_refused(recommender: OneRecRecommender) -> None:
    with pytest.raises(ConfigError, match="num_beams = 10"):
        recommender.recommend([np.array([1])], 11, exclude_seen=False)
