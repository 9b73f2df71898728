"""Training finds a rule in the log, keeps the best pass, draws random items as stated, refuses what is no number."""

from typing import Any

import numpy as np
import pytest
import torch

from onerec.data.histories import Histories
from onerec.data.settings import FeedbackKind
from onerec.errors import OneRecError
from onerec.model.preference.contexts import EventReader
from onerec.model.preference.network import PreferenceConfig, PreferenceModel
from onerec.model.preference.settings import BackboneSettings
from onerec.model.preference.signals import CHOSEN
from rl.preference.baselines import fit_matrix_factorisation, popularity_scores
from rl.preference.evaluation import predict, summarize
from rl.preference.events import split_rows
from rl.preference.settings import FeedbackTowerSettings, RewardModelSettings
from rl.preference.signals import choose_signals
from rl.preference.training import CandidateSampler, fit, fit_model

NUM_ITEMS = 20
SETTINGS = RewardModelSettings(epochs=5, patience=5, examples_per_step=64, learning_rate=5e-3, weight_decay=0.0)


def partisan_histories(num_users: int = 50, length: int = 30) -> Histories:
    """A quarter of the users likes even items, the others odd ones; all have the same items and the same times."""
    rng = np.random.default_rng(0)
    items = rng.integers(0, NUM_ITEMS, (num_users, length))
    taste = np.arange(num_users)[:, None] % 4 > 0
    like = (items % 2 == taste).astype(np.float32)
    times = np.tile(np.arange(length), num_users)
    feedback = {
        "like": like.ravel(),
        "watch_seconds": (1 + 30 * like * rng.random(like.shape)).astype(np.float32).ravel(),
    }
    offsets = np.arange(num_users + 1, dtype=np.int64) * length
    splits = np.zeros(num_users * length, np.uint8)
    return Histories(offsets, items.astype(np.int32).ravel(), times, splits, feedback)


def parts(histories: Histories, towers: FeedbackTowerSettings, kind: Any = "attention") -> tuple[Any, ...]:
    kinds = {"like": FeedbackKind.BINARY, "watch_seconds": FeedbackKind.SECONDS}
    signals, _ = choose_signals(histories.feedback, histories.items, kinds, towers)
    reader = EventReader(histories, signals, 10)
    names = [signal.name for signal in signals]
    sampler = CandidateSampler(reader, NUM_ITEMS, names, towers.sampled_negatives)
    torch.manual_seed(0)
    backbone = BackboneSettings(kind=kind, width=16, max_history_items=10)
    dumped = [signal.model_dump(mode="json") for signal in signals]
    model = PreferenceModel(
        PreferenceConfig(num_items=NUM_ITEMS, feature_sizes=(2,), signals=dumped, backbone=backbone.model_dump())
    )
    model.set_features(np.arange(NUM_ITEMS)[:, None] % 2)
    return reader, sampler, model


@pytest.mark.parametrize("kind", ["attention", "mixer", "stack"])
def test_a_taste_is_read_from_the_history(kind: Any) -> None:
    """Neither popularity nor a user's mean knows it; the P-Score learns it from likes and seconds at once."""
    histories = partisan_histories()
    reader, sampler, model = parts(histories, FeedbackTowerSettings(), kind)
    rows = split_rows(histories, True, SETTINGS)
    lines = fit_model(model, reader, sampler, rows, SETTINGS, seed=0)
    popularity = popularity_scores(histories, rows, NUM_ITEMS)
    rival = fit_matrix_factorisation(histories.num_users, NUM_ITEMS, model.signals, sampler, rows, seed=0)
    figures = summarize(predict(model, reader, sampler, rows.test, popularity, rival), model.signals)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert figures["like"]["gauc"] > 0.95
    assert figures["like"]["gauc_of_pscore"] > 0.95
    assert figures["like"]["calibration_error"] < 0.1
    assert figures["like"]["gauc_of"]["popularity"] < 0.9
    watch = figures["watch_seconds"]["watch_time"]
    assert watch["mae"] < 0.8 * watch["of_training_mean"]["mae"]
    shares = list(watch["share_below_quantile"].values())
    assert shares == sorted(shares)


def test_the_weights_of_the_best_pass_are_kept() -> None:
    histories = partisan_histories(num_users=20)
    reader, sampler, model = parts(histories, FeedbackTowerSettings())
    rows = split_rows(histories, True, SETTINGS)
    hasty = SETTINGS.model_copy(update={"learning_rate": 0.05, "epochs": 30, "patience": 2})
    states = []

    def loss_of(candidates: Any) -> torch.Tensor:
        contexts = reader.contexts(candidates.rows_B, model.device)
        scores = model(contexts, torch.from_numpy(candidates.items_BG))
        if not model.training:
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model.loss(scores, torch.from_numpy(candidates.values_BGT))

    lines = fit(model, loss_of, sampler, rows, hasty, 0, "test")
    best = int(np.argmin([line["validation_loss"] for line in lines]))
    assert len(lines) == best + 1 + 2 < 30  # it stopped for want of patience
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, states[best][name], rtol=0, atol=0)
    assert not model.training


def test_the_same_seed_gives_the_same_losses() -> None:
    histories = partisan_histories(num_users=20)
    rows = split_rows(histories, True, SETTINGS)
    losses = []
    for seed in (3, 3, 4):
        reader, sampler, model = parts(histories, FeedbackTowerSettings(sampled_negatives=2))
        torch.manual_seed(seed)
        quick = SETTINGS.model_copy(update={"epochs": 2})
        losses.append([line["loss"] for line in fit_model(model, reader, sampler, rows, quick, seed)])
    assert losses[0] == losses[1] != losses[2]


def test_random_items_are_a_no_to_one_tower_and_nothing_to_the_others() -> None:
    histories = partisan_histories(num_users=20)
    _, sampler, model = parts(histories, FeedbackTowerSettings(sampled_negatives=50))
    rows = np.array([4, 70])
    candidates = sampler.draw(rows, np.random.default_rng(0))
    chosen = [signal.name for signal in model.signals].index(CHOSEN)
    assert candidates.items_BG.shape == (2, 51)
    assert candidates.items_BG[:, 0].tolist() == histories.items[rows].tolist()
    assert candidates.users_B.tolist() == [0, 2]
    assert candidates.values_BGT[:, 0, chosen].tolist() == [1, 1]
    own = candidates.items_BG[:, 1:] == candidates.items_BG[:, :1]
    assert own.any()
    expected = np.where(own, np.nan, 0.0)
    np.testing.assert_array_equal(candidates.values_BGT[:, 1:, chosen], expected)
    assert np.isnan(np.delete(candidates.values_BGT[:, 1:], chosen, axis=-1)).all()


def test_positives_alone_teach_against_random_items() -> None:
    """Users only ever meet items of their own parity; the tower finds out which."""
    histories = partisan_histories(num_users=60)
    kept = histories.feedback["like"] > 0
    offsets = np.concatenate([[0], np.cumsum(kept)])[histories.offsets]
    parts_of_log = (array[kept] for array in (histories.items, histories.timestamps, histories.splits))
    positives = Histories(offsets, *parts_of_log)
    reader, sampler, model = parts(positives, FeedbackTowerSettings(sampled_negatives=4))
    rows = split_rows(positives, True, SETTINGS)
    fit_model(model, reader, sampler, rows, SETTINGS, seed=0)
    popularity = popularity_scores(positives, rows, NUM_ITEMS)
    rival = fit_matrix_factorisation(positives.num_users, NUM_ITEMS, model.signals, sampler, rows, seed=0)
    figures = summarize(predict(model, reader, sampler, rows.test, popularity, rival), model.signals)
    assert figures[CHOSEN]["gauc"] > 0.7 > figures[CHOSEN]["gauc_of"]["popularity"]
    assert figures[CHOSEN]["positives"] == pytest.approx(0.2, abs=0.02)


def test_a_loss_that_is_no_number_is_an_error() -> None:
    histories = partisan_histories(num_users=20)
    reader, sampler, model = parts(histories, FeedbackTowerSettings())
    rows = split_rows(histories, True, SETTINGS)
    with torch.no_grad():
        model.fusion[-1].bias.fill_(float("nan"))
    with pytest.raises(OneRecError, match=r"found loss nan.*in pass 1, expected numbers\. Lower reward\.learning_rate"):
        fit_model(model, reader, sampler, rows, SETTINGS, seed=0)


def test_a_factorisation_shows_newcomers_the_items_biases() -> None:
    histories = partisan_histories(num_users=20)
    _, sampler, model = parts(histories, FeedbackTowerSettings())
    rows = split_rows(histories, True, SETTINGS)
    network = fit_matrix_factorisation(25, NUM_ITEMS, model.signals, sampler, rows, seed=0)
    items = torch.arange(NUM_ITEMS)[None]
    newcomer = network(torch.tensor([24]), items)[0]
    biases = network.items.weight.unflatten(-1, (len(model.signals), -1))[..., 0] + network.bias_T
    torch.testing.assert_close(newcomer, biases)
    known = network(torch.tensor([0]), items)[0, :, 0]
    assert known[::2].mean() > known[1::2].mean()  # user 0 likes even items
