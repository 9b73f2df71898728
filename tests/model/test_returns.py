"""Wishes in the model: the loss and the search read the same, each target its own; a trained model grants them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from onerec.data.batches import TrainingWindows
from onerec.data.features import fit_pathways
from onerec.data.histories import Histories
from onerec.data.pathway_settings import PathwaySettings
from onerec.data.pathways import UserEvents
from onerec.data.prepared import PreparedData
from onerec.data.schema import ResolvedSchema
from onerec.data.settings import FeedbackKind
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError, DataError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import training_windows
from tokenizer.settings import build_settings

SIZES, NUM_ITEMS, WINDOW = (4, 3), 12, 5
CODES_NL = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1)
TRIE = Trie.from_table(CODES_NL, SIZES)


def make_data(watched_N: np.ndarray, items_N: np.ndarray) -> PreparedData:
    """Users of ten training events."""
    offsets = np.arange(0, len(items_N) + 1, 10, dtype=np.int64)
    feedback = {"watch_seconds": watched_N.astype(np.float32)}
    splits = np.zeros(len(items_N), dtype=np.uint8)
    histories = Histories(offsets, items_N.astype(np.int32), np.arange(len(items_N)), splits, feedback)
    items = pl.DataFrame({"item_id": np.arange(NUM_ITEMS)})
    users = pl.DataFrame({"user_id": np.arange(len(offsets) - 1)})
    schema = ResolvedSchema(
        text_columns=(),
        category_columns=(),
        user_category_columns=(),
        feedback={"watch_seconds": FeedbackKind.SECONDS},
        has_time=True,
        vector_width=None,
    )
    return PreparedData(items, users, histories, schema, None)  # type: ignore[arg-type]


def short_or_long(num_users: int = 40) -> PreparedData:
    """Items below 6 are watched for a second or two, the others for a minute; which comes next is chance."""
    rng = np.random.default_rng(0)
    items_N = rng.integers(0, NUM_ITEMS, 10 * num_users)
    return make_data(np.where(items_N < 6, 1.0, 60.0) + rng.random(len(items_N)), items_N)


def make_model(data: PreparedData, unknown_share: float = 0.2) -> tuple[OneRec, TrainingWindows]:
    settings = {"returns": {"columns": ["watch_seconds"], "unknown_share": unknown_share}}
    fitted = fit_pathways(PathwaySettings.model_validate(settings), data, None)
    torch.manual_seed(0)
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "num_context_layers": 1, "num_decoder_layers": 1}
    spec = fitted.spec.model_dump(mode="json")
    config = OneRecConfig(
        SIZES, NUM_ITEMS, pathways=spec, max_history_items=WINDOW, dropout=0.0, bos_reads_context=True, **shape
    )
    model = OneRec(config)
    model.set_codes(CODES_NL, "hash")
    model.encoder.set_pathways(fitted)
    return model, training_windows(data.histories, model, fitted)


def shaken(model: OneRec) -> OneRec:
    """The same model far from its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_what_a_target_costs_is_what_the_search_gives_it_under_that_wish() -> None:
    """A pass over all targets at once against one request a target, each with its own return wished for."""
    data = short_or_long(num_users=3)
    model, windows = make_model(data)
    shaken(model)
    recommender = OneRecRecommender(model, TRIE, 12)
    rows = np.arange(windows.first_targets[1], windows.stops[1])
    with torch.inference_mode():
        passed = model(**windows.collate(np.array([1])))
        losses = []
        for row in rows:
            watched = float(data.histories.feedback["watch_seconds"][row])
            events = UserEvents(data.histories.items[windows.starts[1] : row], wished={"watch_seconds": watched})
            target = torch.tensor([[data.histories.items[row]]])
            context = recommender.encode([events])
            logits = model.score_levels(context, model.codes_of(target))
            codes_L = model.codes_of(target)[0, 0]
            losses.append([-part[0, 0].log_softmax(-1)[code] for part, code in zip(logits, codes_L, strict=True)])
    expected_L = torch.tensor(losses).mean(dim=0)
    torch.testing.assert_close(passed.level_losses_L, expected_L, rtol=1e-4, atol=1e-4)


def test_a_wish_changes_what_is_found_and_leaves_the_encoder_alone() -> None:
    model, _ = make_model(short_or_long(num_users=3))
    recommender = OneRecRecommender(shaken(model), TRIE, 12)
    events = UserEvents(np.array([3, 8]))
    wishes = ({}, {"watch_seconds": 1.0}, {"watch_seconds": 61.0})
    plain, low, high = (recommender.encode([replace(events, wished=wished)]) for wished in wishes)
    for context in (low, high):
        torch.testing.assert_close(context.states_BSD, plain.states_BSD, rtol=0, atol=0)
    found = [recommender.search(context, 12).scores_BK for context in (plain, low, high)]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[1], found[2])


def test_a_share_of_training_returns_is_withheld() -> None:
    model, _ = make_model(short_or_long(num_users=3), unknown_share=0.25)
    shaken(model)
    returns = model.encoder.pathways.returns
    values = torch.full((200, 50, 1), 60.0)
    told, nothing = returns(values)[0, 0], returns.nothing()[0, 0]
    found = returns.train()(values)
    withheld = (found - nothing).abs().amax(dim=-1) < 1e-6
    assert torch.allclose(found[~withheld], told, atol=1e-6)
    assert abs(withheld.float().mean() - 0.25) < 0.02


def test_a_trained_model_grants_wishes() -> None:
    data = short_or_long()
    model, windows = make_model(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        model(**windows.collate(np.arange(len(windows)))).loss.backward()
        optimizer.step()
    recommender = OneRecRecommender(model, TRIE, 12)
    histories = [data.histories.items[10 * user : 10 * user + 9] for user in range(20)]

    def share_of_long(**wished: float) -> float:
        requests = [UserEvents(items, wished=wished) for items in histories]
        return float((recommender.recommend(requests, 4, exclude_seen=False).items_BK >= 6).mean())

    assert share_of_long(watch_seconds=1.5) < 0.1
    assert share_of_long(watch_seconds=60.5) > 0.9
    assert 0.2 < share_of_long() < 0.8


# ---- refused -------------------------------------------------------------------------------------------------------


def test_a_model_without_returns_grants_no_wish() -> None:
    model = OneRec(OneRecConfig(SIZES, NUM_ITEMS, d_model=16, d_ff=32))
    model.set_codes(CODES_NL, "hash")
    with pytest.raises(DataError, match=r"none: train with model\.pathways\.returns"):
        OneRecRecommender(model, TRIE, 2).encode([UserEvents(np.array([1]), wished={"watch_seconds": 9.0})])


def test_returns_that_do_not_differ_are_refused() -> None:
    with pytest.raises(DataError, match="found the value 7 everywhere in 'watch_seconds'"):
        make_model(make_data(np.full(20, 7.0), np.arange(20) % NUM_ITEMS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bos_reads_context": False}, "without bos_reads_context, by which decoding reads them"),
        ({"context": "lazy"}, "without bos_reads_context, by which decoding reads them"),
        ({"session_items": 3}, "found with session_items 3, expected single items"),
    ],
)
def test_a_model_that_could_not_read_returns_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(ModelSettings, {"pathways": {"returns": {"columns": ["like"]}}, **changes}, "test.yaml")
