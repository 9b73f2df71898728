"""Pathways in the model: training, evaluation and a loaded model score alike, and no target sees what came later."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from onerec.data.batches import TrainingWindows, many_target_windows
from onerec.data.features import FittedPathways, fit_pathways
from onerec.data.histories import Histories, Split
from onerec.data.pathway_settings import PathwaySettings
from onerec.data.pathways import EventSource, UserEvents, WindowPathways
from onerec.data.prepared import PreparedData
from onerec.data.schema import ResolvedSchema
from onerec.data.settings import FeedbackKind
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ArtifactError, ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import training_windows
from tokenizer.settings import build_settings

SIZES = (4, 3, 2)
NUM_ITEMS, NUM_USERS, WINDOW = 20, 6, 4
ALL: dict[str, Any] = {
    "static": {"features": ["gender", "user_id"]},
    "short_term": {},
    "positive": {"column": "rating", "minimum": 4, "length": 5},
    "lifelong": {"max_representatives": 4, "num_queries": 3},
    "tables": {"own_rows": 3, "shared_rows": 5, "num_buckets": 4},
}
CONTEXTS = ["causal", "bidirectional", "lazy"]
CODES_NL = np.stack(np.unravel_index(np.random.default_rng(0).permutation(24)[:NUM_ITEMS], SIZES), axis=1)
TRIE = Trie.from_table(CODES_NL, SIZES)


def make_data(seed: int = 0) -> PreparedData:
    """Users of 2 to 27 training events and a held-out one."""
    rng = np.random.default_rng(seed)
    counts = 3 + 5 * np.arange(NUM_USERS)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    splits = np.zeros(offsets[-1], dtype=np.uint8)
    splits[offsets[1:] - 1] = Split.TEST
    histories = Histories(
        offsets,
        rng.integers(0, NUM_ITEMS, offsets[-1]).astype(np.int32),
        np.concatenate([np.sort(rng.integers(0, 900, count)) for count in counts]),
        splits,
        {"rating": rng.integers(1, 6, offsets[-1]).astype(np.float32)},
    )
    items = pl.DataFrame({"item_id": np.arange(NUM_ITEMS), "genre": rng.choice(list("abcdef"), NUM_ITEMS)})
    users = pl.DataFrame({"user_id": np.arange(NUM_USERS), "gender": ["F", "M"] * (NUM_USERS // 2)})
    schema = ResolvedSchema(
        text_columns=(),
        category_columns=("genre",),
        user_category_columns=("gender",),
        feedback={"rating": FeedbackKind.RATING},
        has_time=True,
        vector_width=None,
    )
    return PreparedData(items, users, histories, schema, None)  # type: ignore[arg-type]


DATA = make_data()


def fit(pathways: dict[str, Any]) -> FittedPathways:
    vectors = np.random.default_rng(1).normal(size=(NUM_ITEMS, 3)).astype(np.float32)
    return fit_pathways(PathwaySettings.model_validate(pathways), DATA, vectors)


def make_model(pathways: dict[str, Any] | None = None, **changes: Any) -> tuple[OneRec, FittedPathways]:
    """A model far from its start, so that a lost term cannot hide below the tolerance."""
    fitted = fit(ALL if pathways is None else pathways)
    torch.manual_seed(0)
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_history_items": WINDOW, "dropout": 0.0, **changes}
    config = OneRecConfig(SIZES, NUM_ITEMS, pathways=fitted.spec.model_dump(mode="json"), **shape)
    model = OneRec(config).eval()
    model.set_codes(CODES_NL, "hash-of-the-table")
    model.encoder.set_pathways(fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, fitted


def source_of(fitted: FittedPathways, histories: Histories = DATA.histories) -> EventSource:
    return EventSource(histories, fitted.profiles)


@torch.inference_mode()
def log_probabilities(model: OneRec, history: np.ndarray | UserEvents, item: int) -> torch.Tensor:
    """What beam search would sum for `item` after that history, level by level (L,)."""
    recommender = OneRecRecommender(model, TRIE, 2)
    context = recommender.encode([history])
    cache, chosen, found = model.new_cache(), None, []
    for level, code in enumerate(model.codes_of(torch.tensor(item))):
        found.append(model.decode_step(chosen, level, context, cache)[0, 0, code])
        chosen = code.view(1, 1)
    return torch.stack(found)


def loss_of(model: OneRec, windows: TrainingWindows, window: int) -> torch.Tensor:
    with torch.no_grad():
        return model(**windows.collate(np.array([window]))).level_losses_L


@pytest.mark.parametrize("context", CONTEXTS)
def test_training_scores_what_evaluation_scores(context: str) -> None:
    model, fitted = make_model(context=context)
    windows = training_windows(DATA.histories, model, fitted)
    source, compared = source_of(fitted), 0
    training = DATA.histories.training()
    for window in range(len(windows)):
        start, row = windows.starts[window], windows.stops[window] - 1
        user = training.users_of(np.array([row]))[0]
        if row - start < WINDOW and start > training.offsets[user]:
            continue  # a window of many targets that ends early reads less of the short term than a request would
        batch = windows.collate(np.array([window]))
        batch["target_items"][:, :-1] = -100  # the last target alone
        with torch.no_grad():
            trained = model(**batch).level_losses_L
        place = DATA.histories.offsets[user] + row - training.offsets[user]
        torch.testing.assert_close(
            -log_probabilities(model, source.before(int(place)), training.items[row]), trained, rtol=1e-4, atol=1e-5
        )
        compared += start > training.offsets[user]
    assert compared > 5


@pytest.mark.parametrize("context", ["causal", "lazy"])
def test_every_target_of_a_pass_equals_its_one_target_form(context: str) -> None:
    model, fitted = make_model(context=context, item_head_weight=0.5, num_experts=3)
    source = EventSource(DATA.histories.training(), fitted.profiles)
    reader = model.encoder.pathways.reader()
    start, stop = int(source.histories.offsets[-1]) - WINDOW - 1, int(source.histories.offsets[-1])
    items = torch.from_numpy(source.histories.items[start:stop].astype(np.int64))
    many = model(
        input_ids=items[None, :-1] + 1,
        target_items=items[None, 1:],
        pathways=WindowPathways(reader, source).read(np.array([start]), np.array([stop]), WINDOW),
    )
    singles = [
        model(
            input_ids=items[None, :cut] + 1,
            target_items=items[None, cut : cut + 1],
            pathways=reader.read([source.before(start + cut)], np.array([cut]), cut),
        )
        for cut in range(1, stop - start)
    ]
    torch.testing.assert_close(many.level_losses_L, torch.stack([one.level_losses_L for one in singles]).mean(dim=0))
    torch.testing.assert_close(many.item_loss, torch.stack([one.item_loss for one in singles]).mean())


def altered(histories: Histories, row: int) -> Histories:
    """The same log with other items, ratings and times in every event from `row` on."""
    items, times, ratings = histories.items.copy(), histories.timestamps.copy(), histories.feedback["rating"].copy()
    items[row:] = (items[row:] + 3) % NUM_ITEMS
    times[row:] += 5000
    ratings[row:] = 6 - ratings[row:]
    return Histories(histories.offsets, items, times, histories.splits, {"rating": ratings})


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_later_event_changes_no_earlier_target(context: str) -> None:
    model, fitted = make_model(context=context)
    windows = training_windows(DATA.histories, model, fitted)
    for window in (len(windows) - 1, len(windows) // 2):
        for row in range(int(windows.first_targets[window]), int(windows.stops[window])):
            changed = training_windows(altered(DATA.histories.training(), row + 1), model, fitted)
            batches = [some.collate(np.array([window])) for some in (windows, changed)]
            for batch in batches:
                width = batch["target_items"].size(1)
                batch["target_items"][
                    :, [place for place in range(width) if windows.stops[window] - width + place != row]
                ] = -100
            before, after = (model(**batch).level_losses_L for batch in batches)
            torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("pathway", ["static", "short_term", "positive", "lifelong"])
def test_each_pathway_alone_tells_of_the_user(context: str, pathway: str) -> None:
    model, fitted = make_model({pathway: ALL[pathway]}, context=context)
    events = source_of(fitted).before(int(DATA.histories.offsets[-1]) - 1)
    ratings = np.array(events.feedback["rating"])
    ratings[: -WINDOW - 1] = 5
    events = UserEvents(events.items, events.timestamps, {"rating": ratings}, events.profile)
    changes = {
        "static": UserEvents(events.items, events.timestamps, events.feedback, {**events.profile, "gender": "F"}),
        "short_term": UserEvents(events.items, events.timestamps, {"rating": 6 - ratings}, events.profile),
        "positive": UserEvents(
            events.items, events.timestamps, {"rating": np.append(0 * ratings[:-4], ratings[-4:])}, events.profile
        ),
        "lifelong": UserEvents(np.append((events.items[:9] + 1) % NUM_ITEMS, events.items[9:]), events.timestamps),
    }
    plain = log_probabilities(model, events, 3)
    moved = [
        name for name, changed in changes.items() if not torch.allclose(log_probabilities(model, changed, 3), plain)
    ]
    assert pathway in moved


def test_positive_events_are_numbered_from_the_newest() -> None:
    model, _ = make_model({"positive": {"column": "rating", "length": 5, "features": []}})
    inputs = {"positive_items": torch.tensor([[3, 5, 4, 0]]), "positive_values": torch.zeros(1, 4, 0)}
    pathways = model.encoder.pathways
    found = pathways.older(lambda items: torch.zeros(*items.shape, 16), inputs)[0][0, :3]
    torch.testing.assert_close(found, pathways.positive_positions.weight[[2, 1, 0]])


@pytest.mark.parametrize("context", CONTEXTS)
def test_padding_and_company_change_nothing(context: str) -> None:
    model, fitted = make_model(context=context)
    recommender = OneRecRecommender(model, TRIE, 2)
    rows = [1, *(int(DATA.histories.offsets[user]) - 1 for user in (2, 4, NUM_USERS))]  # 0, 3, 13 and 23 older events
    requests = [source_of(fitted).before(row) for row in rows]
    with torch.inference_mode():
        together = model.decode_step(None, 0, recommender.encode(requests), model.new_cache())
        for row, events in enumerate(requests):
            alone = model.decode_step(None, 0, recommender.encode([events]), model.new_cache())
            torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_request_without_anything_known_is_answered(context: str) -> None:
    model, _ = make_model(context=context)
    bare = log_probabilities(model, np.array([3, 5, 3, 7, 1, 2]), 4)
    assert torch.isfinite(bare).all()
    torch.testing.assert_close(log_probabilities(model, UserEvents(np.array([3, 5, 3, 7, 1, 2])), 4), bare)
    assert torch.isfinite(log_probabilities(model, np.array([], dtype=np.int64), 4)).all()


def test_values_that_training_has_not_seen_are_one_unknown() -> None:
    model, _ = make_model({"static": {"features": ["gender"]}})
    scores = [
        log_probabilities(model, UserEvents(np.array([3, 5]), profile={"gender": value}), 4)
        for value in ("X", "never seen", None, "F")
    ]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])
    assert not torch.allclose(scores[0], scores[3])


def test_a_loaded_model_scores_alike(tmp_path: Path) -> None:
    model, fitted = make_model()
    model.save_pretrained(tmp_path)
    loaded = OneRec.from_pretrained(tmp_path).eval()
    events = source_of(fitted).before(int(DATA.histories.offsets[-1]) - 1)
    torch.testing.assert_close(log_probabilities(loaded, events, 3), log_probabilities(model, events, 3))
    found = OneRecRecommender(loaded, TRIE, 8)
    ranking = found.recommend([events, events.items], 5, exclude_seen=True)
    assert not np.isin(ranking.items_BK, events.items).any()
    assert not np.allclose(ranking.scores_BK[0], ranking.scores_BK[1])


def test_a_new_model_with_features_starts_as_one_without() -> None:
    """The features' output layers are zero; all other weights have the names and the shapes of a plain model."""
    fitted = fit({"static": {}, "short_term": {}})
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_history_items": WINDOW}
    plain = OneRec(OneRecConfig(SIZES, NUM_ITEMS, **shape)).eval()
    rich = OneRec(OneRecConfig(SIZES, NUM_ITEMS, pathways=fitted.spec.model_dump(mode="json"), **shape)).eval()
    rich.encoder.set_pathways(fitted)
    plain.set_codes(CODES_NL, "hash-of-the-table")
    missing = rich.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("encoder.pathways.") for key in missing.missing_keys)
    events = source_of(fitted).before(20)
    torch.testing.assert_close(
        log_probabilities(rich, events, 3), log_probabilities(plain, events.items, 3), rtol=0, atol=0
    )


def test_without_pathways_nothing_is_added() -> None:
    config = ModelSettings(d_model=16, num_heads=2).configuration(SIZES, NUM_ITEMS)
    assert config.pathways is None
    model = OneRec(config)
    assert model.encoder.pathways is None
    assert not [name for name in model.state_dict() if "pathways" in name]
    windows = many_target_windows(DATA.histories, WINDOW)
    assert list(windows.collate(np.array([0, 1]))) == ["input_ids", "target_items"]


def test_every_weight_has_a_gradient_in_every_pass() -> None:
    """Also where no user has older events: data parallelism waits for the gradients of all weights."""
    model, fitted = make_model()
    windows = training_windows(DATA.histories, model.train(), fitted)
    model(**windows.collate(np.array([0]))).loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_bfloat16_blocks_give_nearly_the_same_scores() -> None:
    model, fitted = make_model()
    events = source_of(fitted).before(int(DATA.histories.offsets[-1]) - 1)
    fine, coarse = (log_probabilities(some, events, 3) for some in (model, model.for_decoding("bfloat16")))
    assert 0 < (fine - coarse).abs().max() < 0.2


def test_what_does_not_belong_together_is_refused() -> None:
    model, fitted = make_model()
    other = fit({**ALL, "positive": {"column": "rating", "minimum": 2}})
    with pytest.raises(ArtifactError, match="the model's own specification"):
        model.encoder.set_pathways(other)
    plain = OneRec(OneRecConfig(SIZES, NUM_ITEMS, d_model=16, num_heads=2))
    with pytest.raises(ArtifactError, match="a model without pathways"):
        plain.encoder.set_pathways(fitted)
    with pytest.raises(ConfigError, match="found a model with pathways"):
        training_windows(DATA.histories, model)
    with pytest.raises(ConfigError, match="found no inputs for them"):
        model.encode(torch.tensor([[3, 5]]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"pathways": {"positive": {}}}, "pathways.positive.column"),
        ({"pathways": {"positive": {"column": "rating", "length": 0}}}, "pathways.positive.length.*greater than 0"),
        ({"pathways": {"lifelong": {"num_queries": 0}}}, "pathways.lifelong.num_queries.*greater than 0"),
        ({"pathways": {"shortterm": {}}}, "unknown key 'pathways.shortterm'. Did you mean 'short_term'"),
        (
            {"pathways": {"lifelong": {}}, "context": "lazy", "embedding_dim": 8},
            "embedding_dim: found 8 beside pathways",
        ),
    ],
)
def test_bad_settings_are_refused(model: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_settings(ModelSettings, model, origin="test")


def test_pathways_without_fitted_features_are_refused() -> None:
    settings = build_settings(ModelSettings, {"pathways": {"static": {}}}, origin="test")
    with pytest.raises(ConfigError, match="no features fitted on data"):
        settings.configuration(SIZES, NUM_ITEMS)
