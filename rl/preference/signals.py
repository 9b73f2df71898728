"""Which feedback columns of a log get a tower of the reward model, and what their questions are.

Shapes: N events.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from onerec.data.settings import FeedbackKind
from onerec.errors import ConfigError, DataError
from onerec.model.preference.signals import CHOSEN, Signal, require_known
from rl.preference.settings import FeedbackTowerSettings

_NUM_QUANTILES = 8


def choose_signals(
    feedback: Mapping[str, np.ndarray],
    items: np.ndarray,
    kinds: Mapping[str, FeedbackKind],
    settings: FeedbackTowerSettings,
) -> tuple[tuple[Signal, ...], list[str]]:
    """The columns that get a tower, and notes on those that do not.

    Args:
        feedback: column -> (N,) values of the events to train on, NaN where not recorded.
        items: (N,) their items.
        kinds: column -> what its numbers mean.

    Raises:
        ConfigError: settings that name a column without a tower.
        DataError: a named column is missing or constant, or no column can be used.
    """
    if settings.columns == "auto":
        names, notes = _usable_columns(feedback, items, settings.left_out)
    else:
        names, notes = list(settings.columns), []
        for name in names:
            _require_spread(name, feedback)
    signals = tuple(_signal(name, feedback[name], kinds[name], settings) for name in names)
    if settings.sampled_negatives:
        signals += (_chosen(names, settings),)
    if not signals:
        raise DataError(
            f"reward: found no feedback column that varies ({'; '.join(notes) or 'the events have none'}), expected "
            "at least one binary, count, seconds or rating column. Map one (data.feedback), or, where the log holds "
            "positives alone, train against random items: reward.towers.sampled_negatives=4."
        )
    for key in ("good_from", "pscore_weights"):
        require_known(f"reward.towers.{key}", getattr(settings, key), [signal.name for signal in signals])
    return signals, notes


def _usable_columns(
    feedback: Mapping[str, np.ndarray], items: np.ndarray, left_out: Sequence[str]
) -> tuple[list[str], list[str]]:
    names, notes = [], []
    for name, values in feedback.items():
        constant = _constant(values)
        if name in left_out:
            notes.append(f"{name}: left out (reward.towers.left_out)")
        elif constant is not None:
            notes.append(f"{name}: {constant}")
        elif _is_fact_about_item(items, values):
            notes.append(f"{name}: the same for all events of an item, hence no feedback")
        else:
            names.append(name)
    return names, notes


def _constant(values: np.ndarray) -> str | None:
    """Why a column says nothing, None where it does."""
    recorded = values[~np.isnan(values)]
    if not len(recorded):
        return "nothing recorded"
    return f"the value {recorded[0]:g} everywhere" if recorded.min() == recorded.max() else None


def _require_spread(name: str, feedback: Mapping[str, np.ndarray]) -> None:
    if name not in feedback:
        raise DataError(
            f"reward.towers.columns: found no feedback column {name!r}, expected some of "
            f"{', '.join(feedback) or 'none: the events have no feedback'}. Name these, or add the column."
        )
    constant = _constant(feedback[name])
    if constant is not None:
        raise DataError(
            f"reward.towers.columns: found {constant} in {name!r}, expected values that differ. Leave the column out, "
            "or train on events that were not filtered by it (data.min_feedback)."
        )


def _is_fact_about_item(items: np.ndarray, values: np.ndarray) -> bool:
    recorded = ~np.isnan(values)
    events = pl.DataFrame({"item": items[recorded], "value": values[recorded]})
    per_item = events.group_by("item").agg(pl.col("value").n_unique().alias("values"), pl.len().alias("events"))
    repeated = per_item.filter(pl.col("events") > 1)
    return repeated.height > 0 and bool((repeated["values"] == 1).all())


def _signal(name: str, values: np.ndarray, kind: FeedbackKind, settings: FeedbackTowerSettings) -> Signal:
    recorded = values[~np.isnan(values)].astype(np.float64)
    positive_from = _positive_from(name, recorded, kind, settings)
    quantiles = np.quantile(recorded, np.linspace(0, 1, _NUM_QUANTILES + 1)[1:-1])
    bounds = [positive_from] if kind is FeedbackKind.BINARY else np.unique([*quantiles, positive_from]).tolist()
    return Signal(
        name=name,
        kind=kind,
        positive_from=positive_from,
        is_good=name not in settings.negative,
        mean=float(recorded.mean()),
        bounds=tuple(bounds),
        pscore_weight=settings.pscore_weights.get(name, 1.0),
    )


def _positive_from(name: str, recorded: np.ndarray, kind: FeedbackKind, settings: FeedbackTowerSettings) -> float:
    if kind in (FeedbackKind.BINARY, FeedbackKind.COUNT):
        if name in settings.good_from:
            raise ConfigError(f"reward.towers.good_from: {name!r} is {kind}, expected a column of seconds or ratings.")
        return 1.0
    least, most = recorded.min(), recorded.max()
    median = float(np.median(recorded))
    found = settings.good_from.get(name, median if median > least else float(recorded[recorded > least].min()))
    if not least < found <= most:
        raise ConfigError(
            f"reward.towers.good_from: found {found:g} for {name!r}, whose training values go from {least:g} to "
            f"{most:g}; expected a value that some of them reach and others do not."
        )
    return found


def _chosen(names: Sequence[str], settings: FeedbackTowerSettings) -> Signal:
    if CHOSEN in names:
        raise ConfigError(
            f"reward.towers.sampled_negatives: the events have a feedback column {CHOSEN!r} already. Rename it, or "
            "set sampled_negatives to 0."
        )
    weight = settings.pscore_weights.get(CHOSEN, 1.0)
    share = 1 / (1 + settings.sampled_negatives)
    return Signal(
        name=CHOSEN,
        kind=FeedbackKind.BINARY,
        positive_from=1.0,
        is_good=True,
        mean=share,
        bounds=(),
        pscore_weight=weight,
    )
