"""Towers' likelihoods against torch's, the fused loss by hand, and the model on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onerec.data.settings import FeedbackKind
from onerec.model.preference.backbones import BACKBONES
from onerec.model.preference.network import PreferenceModel
from onerec.model.preference.settings import WatchTimeSettings
from onerec.model.preference.signals import Signal
from onerec.model.preference.towers import Tower, build_tower
from onerec.model.preference.watch_time import num_outputs

CPU = torch.device("cpu")
NAN = float("nan")


def tower_of(kind: FeedbackKind, positive_from: float = 1.0, mean: float = 2.0, **watch_time: float) -> Tower:
    signal = Signal(
        name="x", kind=kind, positive_from=positive_from, is_good=True, mean=mean, bounds=(1.0,), pscore_weight=1.0
    )
    torch.manual_seed(0)
    return build_tower(signal, 4, 6, 0.0, WatchTimeSettings(num_gaussians=2, **watch_time)).eval()


def items_of(log: Any, num_requests: int, num_items: int) -> torch.Tensor:
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.integers(0, log.build().config.num_items, (num_requests, num_items)))


# ---- towers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "positive_from"), [(FeedbackKind.BINARY, 1.0), (FeedbackKind.RATING, 4.0)])
def test_a_yes_or_no_is_a_bernoulli_variable(kind: FeedbackKind, positive_from: float) -> None:
    tower = tower_of(kind, positive_from)
    raw = torch.tensor([[[0.3], [-1.2], [2.0]]])
    values = torch.tensor([[positive_from, positive_from - 1, positive_from]])
    expected = -torch.distributions.Bernoulli(logits=raw[..., 0]).log_prob(torch.tensor([[1.0, 0, 1]]))
    torch.testing.assert_close(tower.loss(raw, values), expected)
    torch.testing.assert_close(tower.probability(raw), raw[..., 0].sigmoid())


def test_a_count_is_a_poisson_variable_that_starts_at_the_mean() -> None:
    tower = tower_of(FeedbackKind.COUNT, mean=2.5)
    raw, values = torch.tensor([[[0.0], [-1.2], [2.0]]]), torch.tensor([[0.0, 4, 1]])
    rates = tower.expected(raw)
    assert rates[0, 0].item() == pytest.approx(2.5, rel=1e-4)
    poisson = torch.distributions.Poisson(rates)
    torch.testing.assert_close(tower.loss(raw, values), -poisson.log_prob(values))
    torch.testing.assert_close(tower.probability(raw), 1 - poisson.log_prob(torch.zeros(3)).exp())
    assert tower.loss(torch.tensor([[[-1e4]]]), torch.tensor([[7.0]])).isfinite().all()


def test_watch_time_adds_the_error_of_the_mean_and_takes_off_entropy() -> None:
    raw = torch.randn(2, 3, num_outputs(2), generator=torch.Generator().manual_seed(0))
    seconds = torch.rand(2, 3) * 20
    tower = tower_of(FeedbackKind.SECONDS, positive_from=9.0, mean=10.0, regression_weight=0.5, entropy_weight=0.25)
    watched = tower.distribution(raw)  # type: ignore[operator]
    expected = (
        -watched.log_density(seconds)
        - np.log(10.0)
        + 0.5 * (seconds - watched.mean()).abs() / 10
        - 0.25 * watched.entropy()
    )
    torch.testing.assert_close(tower.loss(raw, seconds), expected)
    torch.testing.assert_close(tower.expected(raw), watched.mean())
    torch.testing.assert_close(tower.probability(raw), 1 - watched.cdf(torch.full((2, 3), 9.0)))


# ---- the model ---------------------------------------------------------------------------------------------------


def test_the_loss_by_hand(log: Any) -> None:
    """Two towers of kinds that are easy, one of which says no; values that were not recorded count for nothing."""
    model = log.build()
    scores = model(log.reader().contexts(np.array([3, 6]), CPU), items_of(log, 2, 1))
    values = torch.full((2, 1, len(log.signals)), NAN)
    names = [signal.name for signal in log.signals]
    like, skip = names.index("like"), names.index("skip")
    values[:, 0, like] = torch.tensor([1.0, NAN])
    values[:, 0, skip] = torch.tensor([1.0, 0.0])
    p_like, p_skip = (scores.towers[place].probability_BG[:, 0] for place in (like, skip))
    p = scores.pscores[:, 0]
    of_like = -p_like[0].log() - p[0].log()
    of_skip = (-p_skip[0].log() - (1 - p_skip[1]).log()) / 2 - ((1 - p[0]).log() + p[1].log()) / 2
    torch.testing.assert_close(model.loss(scores, values), of_like + of_skip)


def test_the_pscore_is_trained_by_weight(log: Any) -> None:
    signals = [signal.model_copy(update={"pscore_weight": 3.0}) for signal in log.signals]
    model, heavy = log.build(), log.build()
    for tower, signal in zip(heavy.towers, signals, strict=True):
        tower.signal = signal
    contexts, items = log.reader().contexts(np.array([3, 6]), CPU), items_of(log, 2, 1)
    values = torch.from_numpy(log.reader().values_NT[[3, 6]])[:, None]
    gradients = []
    for each in (model, heavy):
        each.loss(each(contexts, items), values).backward()
        gradients.append([each.fusion[-1].bias.grad.clone(), each.towers[0].output.bias.grad.clone()])
    torch.testing.assert_close(gradients[1][0], 3 * gradients[0][0])
    assert not torch.allclose(gradients[1][1], 3 * gradients[0][1])  # a tower has its own loss beside


def test_nothing_recorded_is_no_loss(log: Any) -> None:
    model = log.build()
    scores = model(log.reader().contexts(np.array([3]), CPU), items_of(log, 1, 2))
    loss = model.loss(scores, torch.full((1, 2, len(log.signals)), NAN))
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_many_requests_and_items_at_once_score_as_one_by_one(log: Any, kind: Any) -> None:
    model, reader = log.build(kind).double(), log.reader()
    rows, items = np.arange(log.histories.num_events), items_of(log, log.histories.num_events, 3)
    together = model(reader.contexts(rows, CPU), items)
    for row in rows:
        for place in range(3):
            alone = model(reader.contexts(rows[row : row + 1], CPU), items[row : row + 1, place : place + 1])
            torch.testing.assert_close(together.pscores[row, place], alone.pscores[0, 0])
            for tower, single in zip(together.towers, alone.towers, strict=True):
                torch.testing.assert_close(tower.expected_BG[row, place], single.expected_BG[0, 0])
    assert together.pscores.std() > 0.01


@pytest.mark.parametrize("part", ["features", "bins", "ages", "identities"])
def test_every_table_is_read(log: Any, part: str) -> None:
    model, rows = log.build(), np.arange(log.histories.num_events)
    model(log.reader().contexts(rows, CPU), items_of(log, len(rows), 2)).pscores.sum().backward()
    assert getattr(model, part).weight.grad.abs().sum() > 0


def test_features_decide_what_items_have_in_common(log: Any) -> None:
    """Items 0 and 6 have the same features: without vectors of their own they score alike, item 1 does not."""
    model = log.build()
    with torch.no_grad():
        model.identities.weight.zero_()
    scores = model(log.reader().contexts(np.array([3]), CPU), torch.tensor([[0, 6, 1]])).pscores[0]
    assert scores[0].item() == pytest.approx(scores[1].item())
    assert scores[0].item() != pytest.approx(scores[2].item())


def test_saved_and_loaded_it_scores_the_same(log: Any, tmp_path: Path) -> None:
    model = log.build("stack")
    model.save_pretrained(tmp_path)
    loaded = PreferenceModel.from_pretrained(tmp_path).eval()
    contexts, items = log.reader().contexts(np.array([3, 6]), CPU), items_of(log, 2, 4)
    torch.testing.assert_close(loaded(contexts, items).pscores, model(contexts, items).pscores, rtol=0, atol=0)
    assert loaded.signals == model.signals
    assert F.pad(loaded.feature_rows_NC, (0, 0)).tolist() == model.feature_rows_NC.tolist()
