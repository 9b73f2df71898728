"""HSTU's block by hand and against loops; times mean the same in training, evaluation and a loaded model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from kernels.jagged_attention import attend_jagged
from onerec.data.features import FittedPathways, fit_pathways, resolve_features
from onerec.data.histories import Histories, Split
from onerec.data.pathway_settings import PathwaySettings
from onerec.data.pathways import EventSource, History, UserEvents
from onerec.data.prepared import PreparedData
from onerec.data.schema import ResolvedSchema
from onerec.data.settings import FeedbackKind
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model import hstu
from onerec.model.configuration import OneRecConfig
from onerec.model.context import ContextEncoder
from onerec.model.hstu import pointwise_attention
from onerec.model.onerec import OneRec
from onerec.training.pretraining import training_windows

SIZES, NUM_ITEMS, WINDOW, LAYERS = (4, 3), 12, 4, 2
CODES_NL = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1)
TRIE = Trie.from_table(CODES_NL, SIZES)
NAN = float("nan")
PATHWAYS: list[dict[str, Any] | None] = [
    None,
    {"times": True},
    {"times": True, "positive": {"column": "rating", "minimum": 3, "length": 3}},
]


def make_data() -> PreparedData:
    """Users of 2, 6 and 12 training events, minutes to weeks apart, and a held-out one."""
    rng = np.random.default_rng(0)
    counts = np.array([3, 7, 13])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    splits = np.zeros(offsets[-1], dtype=np.uint8)
    splits[offsets[1:] - 1] = Split.TEST
    seconds = [np.cumsum(np.exp(rng.uniform(3, 14, count)).astype(np.int64)) for count in counts]
    ratings = rng.integers(1, 6, offsets[-1]).astype(np.float32)
    items = rng.integers(0, NUM_ITEMS, offsets[-1]).astype(np.int32)
    histories = Histories(offsets, items, 1_700_000_000 + np.concatenate(seconds), splits, {"rating": ratings})
    tables = pl.DataFrame({"item_id": np.arange(NUM_ITEMS)}), pl.DataFrame({"user_id": np.arange(len(counts))})
    return PreparedData(*tables, histories, make_schema(), None)  # type: ignore[arg-type]


def make_schema(has_time: bool = True) -> ResolvedSchema:
    return ResolvedSchema(
        text_columns=(),
        category_columns=(),
        user_category_columns=(),
        feedback={"rating": FeedbackKind.RATING},
        has_time=has_time,
        vector_width=None,
    )


DATA = make_data()


def make_model(pathways: dict[str, Any] | None, **changes: Any) -> tuple[OneRec, FittedPathways | None]:
    """A model far from its start, so that a lost term cannot hide below the tolerance."""
    torch.manual_seed(0)
    fitted = None if pathways is None else fit_pathways(PathwaySettings.model_validate(pathways), DATA, None)
    shape = {"d_model": 8, "num_heads": 2, "d_ff": 16, "dropout": 0.0, "max_history_items": WINDOW, **changes}
    spec = None if fitted is None else fitted.spec.model_dump(mode="json")
    config = OneRecConfig(SIZES, NUM_ITEMS, context_block="hstu", num_context_layers=LAYERS, pathways=spec, **shape)
    model = OneRec(config).eval()
    model.set_codes(CODES_NL, "hash-of-the-table")
    if fitted is not None:
        model.encoder.set_pathways(fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model, fitted


def events_before(row: int) -> UserEvents:
    return EventSource(DATA.histories, [{}] * DATA.num_users).before(row)


def encode(model: OneRec, requests: list[History]) -> torch.Tensor:
    with torch.inference_mode():
        return OneRecRecommender(model, TRIE, 2).encode(requests).states_BSD


# ---- the equations -------------------------------------------------------------------------------------------------


def test_pointwise_attention_by_hand() -> None:
    """silu(1.5) = 1.226362; silu(2.5) = 2.310355, silu(-1.5) = -0.273638, halved for the two positions seen."""
    queries, keys, values = (torch.tensor(numbers).view(1, 1, 2, 1) for numbers in ([1.0, 2.0], [1.0, -1.0], [3.0, 5]))
    causal = torch.tensor([[True, False], [True, True]])
    found = pointwise_attention(queries, keys, values, causal, torch.full((1, 1, 2, 2), 0.5))
    expected = torch.tensor([3 * 1.226362, (3 * 2.310355 - 5 * 0.273638) / 2])
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-5)


def bucket(seconds: float) -> int:
    return 0 if math.isnan(seconds) else 1 + min(int(math.log(max(abs(seconds), 1)) / 0.301), 71)


def rms_normed(x: np.ndarray, weight: torch.Tensor) -> np.ndarray:
    return np.asarray(x / np.sqrt((x**2).mean() + 1e-6) * weight.double().numpy())


def silu(x: np.ndarray | float) -> Any:
    return x / (1 + np.exp(-x))


def loop_encoder(encoder: ContextEncoder, x_TD: np.ndarray, num_items: int, times_S: np.ndarray | None) -> np.ndarray:
    """Equations 1 to 3 position by position, for one request without padding."""
    relative = encoder.bias
    num_older = len(x_TD) - 1 - num_items
    for layer, block in enumerate(encoder.blocks):
        weight = block.gate_value_query_key.weight.double().numpy()
        parts = [np.split(silu(weight @ rms_normed(x, block.norm.weight)), 4) for x in x_TD]
        rows = []
        for t, x in enumerate(x_TD):
            seen = [s for s in range(len(x_TD)) if not encoder.causal or s <= t or s < num_older]
            mixed = np.zeros_like(parts[t][1]).reshape(block.num_heads, -1)
            for s in seen:
                bias = 0.0
                if t >= num_older and s >= num_older:
                    distance = t - s + (0 if encoder.causal else WINDOW)
                    bias += relative.places.weight[distance, layer].item()
                if times_S is not None and t > num_older and s > num_older:
                    seconds = times_S[t - num_older - 1] - times_S[s - num_older - 1]
                    bias += relative.intervals.weight[bucket(seconds), layer].item()
                pieces = parts[t][2], parts[s][3], parts[s][1]
                queries, keys, values = (piece.reshape(block.num_heads, -1) for piece in pieces)
                for head in range(block.num_heads):
                    mixed[head] += silu(queries[head] @ keys[head] + bias) * values[head] / len(seen)
            gated = rms_normed(mixed.flatten(), block.mixed_norm.weight) * parts[t][0]
            rows.append(x + block.output.weight.double().numpy() @ gated)
        x_TD = np.stack(rows)
    return np.stack([rms_normed(x, encoder.norm.weight) for x in x_TD])


@pytest.mark.parametrize("context", ["causal", "bidirectional"])
@pytest.mark.parametrize("pathways", PATHWAYS)
@torch.inference_mode()
def test_a_padded_batch_equals_loops_over_each_request(context: str, pathways: dict[str, Any] | None) -> None:
    model, fitted = make_model(pathways, context=context)
    requests = [events_before(row) for row in (22, 1, 3, 8)]  # 12, 1, 0 and 5 events
    together = OneRecRecommender(model, TRIE, 2).encode(requests)
    found_older = together.states_BSD.size(1) - 1 - WINDOW
    for row, events in enumerate(requests):
        items, times = events.items[-WINDOW:], np.asarray(events.timestamps[-WINDOW:], dtype=np.float64)
        inputs = None
        if fitted is not None:
            inputs = model.encoder.pathways.reader().read([events], np.array([len(items)]), max(len(items), 1))
        padded = torch.from_numpy(items if len(items) else np.zeros(1)).long()[None]
        embedded = model.encoder._embed(padded, torch.tensor([len(items)]), inputs, None)
        real = model.encoder.real_positions(torch.arange(padded.size(1))[None] < len(items), inputs)
        expected = loop_encoder(
            model.encoder, embedded[real].double().numpy(), len(items), None if pathways is None else times
        )
        found = together.states_BSD[row]
        num_older = len(expected) - 1 - len(items)
        kept = torch.cat([found[:num_older], found[found_older : found_older + 1 + len(items)]])
        torch.testing.assert_close(kept, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pathways", PATHWAYS[:2])
def test_jagged_attention_gives_the_same_states_and_gradients(
    pathways: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a GPU's kernel would be taken, by its plain form; some of the times are not known."""
    model, fitted = make_model(pathways)
    windows = training_windows(DATA.histories, model, fitted)
    batch = windows.collate(np.arange(len(windows)))
    if pathways is not None:
        batch["pathways"]["times"][0, 1] = NAN
    mixed: list[int] = []

    def count(*arguments: Any) -> torch.Tensor:
        mixed.append(len(arguments[0]))
        return attend_jagged(*arguments)

    losses, gradients = [], []
    for jagged in (False, True):
        monkeypatch.setattr(hstu, "takes_kernel", lambda *_, answer=jagged: answer)
        monkeypatch.setattr(hstu, "attend_jagged", count)
        loss = model(**batch).loss
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, [*model.encoder.parameters()], allow_unused=True))
    real = int((batch["input_ids"] > 0).sum()) + len(windows)
    assert mixed == [real] * LAYERS
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


# ---- what it may know ----------------------------------------------------------------------------------------------


def test_a_later_item_or_time_changes_nothing_before_it() -> None:
    model, _ = make_model({"times": True})
    events = events_before(8)
    items, times = events.items.copy(), np.array(events.timestamps)
    items[-1], times[-1] = (items[-1] + 5) % NUM_ITEMS, times[-1] + 12345
    before, after = (encode(model, [some])[0] for some in (events, UserEvents(items, times)))
    torch.testing.assert_close(after[:-1], before[:-1], rtol=0, atol=0)
    assert not torch.allclose(after[-1], before[-1])


def test_only_time_between_events_matters() -> None:
    model, _ = make_model({"times": True})
    events = events_before(22)
    plain = encode(model, [events])
    shifted = encode(model, [UserEvents(events.items, events.timestamps + 400_000_000)])
    torch.testing.assert_close(shifted, plain, rtol=0, atol=0)
    stretched = encode(model, [UserEvents(events.items, 1000 * events.timestamps)])
    assert not torch.allclose(stretched, plain)


def test_unknown_times_have_a_bias_of_their_own() -> None:
    model, _ = make_model({"times": True})
    events = events_before(22)
    bare = encode(model, [UserEvents(events.items)])
    torch.testing.assert_close(encode(model, [events.items]), bare, rtol=0, atol=0)
    torch.testing.assert_close(encode(model, [UserEvents(events.items, np.full(len(events), NAN))]), bare)
    with torch.no_grad():
        model.encoder.bias.intervals.weight[1:] += 1.0
    torch.testing.assert_close(encode(model, [events.items]), bare, rtol=0, atol=0)
    with torch.no_grad():
        model.encoder.bias.intervals.weight[0] += 1.0
    assert not torch.allclose(encode(model, [events.items]), bare)


def test_a_new_model_adds_nothing_for_unknown_times() -> None:
    torch.manual_seed(0)
    spec = fit_pathways(PathwaySettings(times=True), DATA, None).spec.model_dump(mode="json")
    weight = OneRec(OneRecConfig(SIZES, NUM_ITEMS, context_block="hstu", pathways=spec)).encoder.bias.intervals.weight
    assert weight[0].eq(0).all()
    assert weight[1:].ne(0).all()


# ---- the same numbers everywhere -----------------------------------------------------------------------------------


@torch.inference_mode()
def log_probability(model: OneRec, history: History, item: int) -> torch.Tensor:
    """What beam search would sum for `item`, level by level (L,)."""
    context = OneRecRecommender(model, TRIE, 2).encode([history])
    cache, chosen, found = model.new_cache(), None, []
    for level, code in enumerate(CODES_NL[item].tolist()):
        found.append(model.decode_step(chosen, level, context, cache)[0, 0, code])
        chosen = torch.tensor([[code]])
    return torch.stack(found)


@pytest.mark.parametrize("context", ["causal", "bidirectional"])
@pytest.mark.parametrize("pathways", PATHWAYS)
def test_training_scores_what_a_loaded_model_scores(
    context: str, pathways: dict[str, Any] | None, tmp_path: Path
) -> None:
    model, fitted = make_model(pathways, context=context, bos_reads_context=True)
    model.save_pretrained(tmp_path)
    loaded = OneRec.from_pretrained(tmp_path).eval()
    windows, training = training_windows(DATA.histories, model, fitted), DATA.histories.training()
    for window in range(len(windows)):
        row = int(windows.stops[window]) - 1
        user = int(training.users_of(np.array([row]))[0])
        if row - windows.starts[window] < WINDOW and windows.starts[window] > training.offsets[user]:
            continue  # a window of many targets that ends early reads less of the short term than a request would
        batch = windows.collate(np.array([window]))
        batch["target_items"][:, :-1] = -100  # the last target alone
        with torch.no_grad():
            trained = -model(**batch).level_losses_L
        place = int(DATA.histories.offsets[user] + row - training.offsets[user])
        history: History = events_before(place) if fitted is not None else DATA.histories.before(place)
        torch.testing.assert_close(
            log_probability(loaded, history, int(training.items[row])), trained, rtol=1e-4, atol=1e-5
        )


def test_every_weight_has_a_gradient_and_times_are_learnt() -> None:
    model, fitted = make_model({"times": True})
    windows = training_windows(DATA.histories, model.train(), fitted)
    model(**windows.collate(np.arange(len(windows)))).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    buckets_met = model.encoder.bias.intervals.weight.grad.ne(0).all(dim=1).nonzero().flatten().tolist()
    assert len(buckets_met) > 10
    assert 0 not in buckets_met  # all times of the data are known


def test_bfloat16_blocks_give_nearly_the_same_scores() -> None:
    model, _ = make_model({"times": True})
    fine, coarse = (log_probability(some, events_before(22), 3) for some in (model, model.for_decoding("bfloat16")))
    assert 0 < (fine - coarse).abs().max() < 0.2


def test_times_of_data_without_them_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.pathways\.times: found events without timestamps"):
        resolve_features(PathwaySettings(times=True), make_schema(has_time=False))
    resolve_features(PathwaySettings(times=True), make_schema())
