"""Selection among the beams: by hand, its ends, and by a reward model that reads the request's events."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onerec.bundle import Bundle, build_trie
from onerec.config import RunConfig
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.selection import Selector, rerank
from onerec.evaluation.recommender import NO_ITEM, Ranking
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.preference.contexts import contexts_of
from onerec.model.preference.judge import PreferenceJudge
from onerec.serving.engine import Engine
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendRequest
from tests.serving.test_selection import make_reward_model

RANKING = Ranking(
    np.array([[4, 2, 7], [5, 1, NO_ITEM]], dtype=np.int32),
    np.array([[-1.0, -2.0, -3.0], [-1.0, -5.0, -np.inf]], dtype=np.float32),
)
REWARDS = np.array([[0.1, 0.9, 0.5], [0.2, 0.7, 99.0]])


def test_by_the_reward_alone() -> None:
    found = rerank(RANKING, REWARDS)
    assert found.items_BK.tolist() == [[2, 7, 4], [1, 5, NO_ITEM]]
    assert found.scores_BK[1, 2] == -np.inf
    assert (np.diff(found.scores_BK, axis=1) <= 0).all()


def test_with_no_share_the_order_stays() -> None:
    assert rerank(RANKING, REWARDS, share=0.0).items_BK.tolist() == RANKING.items_BK.tolist()


def test_a_mixture_by_hand() -> None:
    """Standardised scores 1.22, 0, -1.22 and rewards -1.22, 1.22, 0: even shares give 0, .61, -.61."""
    found = rerank(RANKING, REWARDS, share=0.5)
    assert found.items_BK[0].tolist() == [2, 4, 7]
    np.testing.assert_allclose(found.scores_BK[0], np.array([0.5, 0, -0.5]) * np.sqrt(1.5), atol=1e-6)


def test_rewards_that_do_not_differ_leave_the_order() -> None:
    assert rerank(RANKING, np.full((2, 3), 0.1)).items_BK.tolist() == RANKING.items_BK.tolist()


def test_neither_unit_nor_zero_of_the_reward_matters() -> None:
    found, other = rerank(RANKING, REWARDS, 0.6), rerank(RANKING, 1000 * REWARDS - 3, 0.6)
    assert found.items_BK.tolist() == other.items_BK.tolist()
    np.testing.assert_allclose(found.scores_BK, other.scores_BK, atol=1e-5)


def with_item_head(run: Any) -> Any:
    """The run with a model whose item head orders the beams too."""
    table = run.table
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 8, "item_head_weight": 1.0}
    model = OneRec(OneRecConfig(list(table.codes_per_level), len(table.codes_NL), **shape)).eval()
    model.set_codes(table.codes_NL, table.content_hash)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return replace(run, model=model, config=RunConfig(name="small", decoding={"num_beams": 12, "rescoring": 0.7}))


def test_a_request_that_selects_mixes_the_reward_with_both_opinions(small_run: Any, tmp_path: Path) -> None:
    """`select` with `decoding.rescoring`: the rest of the share is the score by codes and item head, of all beams."""
    bundle = Bundle.load(with_item_head(small_run).write_bundle(tmp_path / "bundle"))
    judge = PreferenceJudge(make_reward_model(bundle.table), {"pscore": 1.0}, "test")
    engine = Engine(replace(bundle, selector=Selector(judge, share=0.4)), Limits())
    history = np.array([3, 17, 21, 8])
    request = RecommendRequest(history=(history + 100).tolist(), k=5, beams=12, select=True)
    answer = engine.answer([engine.query(request)])[0]
    contexts = contexts_of([history], judge.model.signals, judge.model.max_history_items, judge.model.device)
    by_codes = OneRecRecommender(bundle.model, build_trie(bundle.table), num_beams=12)
    rankings = [each.recommend([history], 12, exclude_seen=True) for each in (bundle.recommender(), by_codes)]
    expected, other = (rerank(ranking, judge(contexts, ranking.items_BK), 0.4) for ranking in rankings)
    assert [item.id for item in answer.items] == (expected.items_BK[0, :5] + 100).tolist()
    np.testing.assert_allclose([item.score for item in answer.items], expected.scores_BK[0, :5], rtol=1e-5)
    assert expected.items_BK[0, :5].tolist() != other.items_BK[0, :5].tolist()
