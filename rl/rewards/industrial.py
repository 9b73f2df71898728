"""Industrial rewards: rules a business states, applied one after another to the rewards of sampled items.

The technical report (arXiv 2506.13695) multiplies the reward by a factor below 1 for content of a kind whose
share has passed a limit; the other rules are of the same form.

A factor scales towards what it says: a reward below 0 is divided by it, so that a factor below 1 never makes an item
more attractive.

Shapes: B requests, G samples of a request, N items.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field, PositiveFloat

from onerec.errors import ConfigError, suggest_nearest
from tokenizer.settings import Settings

Value = str | int | float | bool


class ShareCap(Settings):
    """Scale the reward of items of a kind while their share of the batch's samples is above a limit."""

    kind: Literal["share_cap"] = "share_cap"
    column: str = Field(description="column of the items table")
    values: tuple[Value, ...] = Field(min_length=1, description="values that make an item of the kind")
    max_share: float = Field(ge=0, lt=1, description="share of the samples from which the factor applies")
    factor: float = Field(gt=0, lt=1, description="what the reward is multiplied by")


class Boost(Settings):
    """Scale the reward of items with some values of a column, such as creators or categories."""

    kind: Literal["boost"] = "boost"
    column: str = Field(description="column of the items table")
    values: tuple[Value, ...] = Field(min_length=1, description="values whose items are scaled")
    factor: PositiveFloat = Field(description="above 1 favours, below 1 disfavours")


class Freshness(Settings):
    """Add to the reward of new items: `weight * 2 ** (-age / half_life)`, age counted from the newest item."""

    kind: Literal["freshness"] = "freshness"
    column: str = Field(description="number or date column of the items table that grows with newness")
    half_life: PositiveFloat = Field(description="age at which half is left, in the column's unit; seconds for dates")
    weight: PositiveFloat = Field(description="added to the reward of the newest item")


class Diversity(Settings):
    """Take from the reward by how many of the other samples of the request have the same value."""

    kind: Literal["diversity"] = "diversity"
    column: str = Field(description="column of the items table")
    weight: PositiveFloat = Field(description="taken from the reward where all the others have the same value")


class Coverage(Settings):
    """Take from the reward by the logarithm of how many times its even share of the batch's samples an item has.

    That is the gradient of the entropy of what all users together are shown: it holds the catalogue in use.
    """

    kind: Literal["coverage"] = "coverage"
    weight: PositiveFloat = Field(description="of that entropy, in the reward's unit by nat")


class Forbidden(Settings):
    """Put a fixed reward in the place of whatever items of a kind had earned; state it last."""

    kind: Literal["forbidden"] = "forbidden"
    column: str = Field(description="column of the items table")
    values: tuple[Value, ...] = Field(min_length=1, description="values that are forbidden")
    reward: float = Field(-1.0, description="reward of such an item")


Rule = Annotated[ShareCap | Boost | Freshness | Diversity | Coverage | Forbidden, Field(discriminator="kind")]


class IndustrialRules:
    """Rules bound to a catalogue.

    Args:
        rules: in the order they are applied.
        items: the items table, row k is item index k.

    Raises:
        ConfigError: a rule names a column the table lacks, a value its column never has, or an age that is no number.
    """

    def __init__(self, rules: Sequence[Rule], items: pl.DataFrame) -> None:
        self._rules = tuple(rules)
        self._facts = [_facts_of(rule, items) for rule in rules]

    def apply(self, rewards_BG: np.ndarray, items_BG: np.ndarray) -> np.ndarray:
        """Rewards (B, G), float32, after every rule; places without an item (-1) keep theirs."""
        for rule, facts_N in zip(self._rules, self._facts, strict=True):
            changed_BG = _apply(rule, facts_N, rewards_BG, items_BG)
            rewards_BG = np.where(items_BG >= 0, changed_BG, rewards_BG)
        return rewards_BG.astype(np.float32)


def _apply(rule: Rule, facts_N: np.ndarray, rewards_BG: np.ndarray, items_BG: np.ndarray) -> np.ndarray:
    facts_BG, present_BG = facts_N[items_BG], items_BG >= 0
    match rule:
        case ShareCap():
            share = (facts_BG & present_BG).sum() / max(present_BG.sum(), 1)
            return _scale(rewards_BG, facts_BG, rule.factor) if share > rule.max_share else rewards_BG
        case Boost():
            return _scale(rewards_BG, facts_BG, rule.factor)
        case Freshness():
            return rewards_BG + rule.weight * facts_BG
        case Diversity():
            return rewards_BG - rule.weight * _share_of_others_alike(facts_BG, present_BG)
        case Coverage():
            return rewards_BG - rule.weight * _log_excess_of_share(items_BG, len(facts_N))
        case Forbidden():
            return np.where(facts_BG, rule.reward, rewards_BG)


def _scale(rewards_BG: np.ndarray, chosen_BG: np.ndarray, factor: float) -> np.ndarray:
    scaled_BG = np.where(rewards_BG > 0, rewards_BG * factor, rewards_BG / factor)
    return np.where(chosen_BG, scaled_BG, rewards_BG)


def _share_of_others_alike(values_BG: np.ndarray, present_BG: np.ndarray) -> np.ndarray:
    alike_BGG = (values_BG[:, :, None] == values_BG[:, None, :]) & present_BG[:, None, :]
    num_others_B1 = present_BG.sum(axis=1, keepdims=True) - 1
    return (alike_BGG.sum(axis=2) - 1) / np.maximum(num_others_B1, 1)


def _log_excess_of_share(items_BG: np.ndarray, num_items: int) -> np.ndarray:
    counts_N = np.bincount(items_BG[items_BG >= 0], minlength=num_items)
    return np.log(np.maximum(counts_N[items_BG], 1) * num_items / max(counts_N.sum(), 1))


def _facts_of(rule: Rule, items: pl.DataFrame) -> np.ndarray:
    """What a rule needs to know of each item (N,): of the kind or not, how fresh, or the number of its value."""
    if isinstance(rule, Coverage):
        return np.zeros(items.height)
    column = _find_column(rule, items)
    match rule:
        case Freshness():
            return _freshness(rule, column)
        case Diversity():
            return column.rank("dense").fill_null(0).to_numpy()
        case _:
            _require_values(rule, column)
            return column.is_in(list(rule.values)).fill_null(False).to_numpy()


def _find_column(rule: ShareCap | Boost | Freshness | Diversity | Forbidden, items: pl.DataFrame) -> pl.Series:
    if rule.column not in items.columns:
        raise ConfigError(
            f"rule {rule.kind}: the items table has no column {rule.column!r}."
            f"{suggest_nearest(rule.column, items.columns)} Columns: {', '.join(items.columns)}."
        )
    return items[rule.column]


def _require_values(rule: ShareCap | Boost | Forbidden, column: pl.Series) -> None:
    known = column.unique().drop_nulls().to_list()
    for value in rule.values:
        if value not in known:
            hint = suggest_nearest(str(value), map(str, known))
            raise ConfigError(f"rule {rule.kind}: no item has {value!r} in column {rule.column!r}.{hint}")


def _freshness(rule: Freshness, column: pl.Series) -> np.ndarray:
    if column.dtype in (pl.Date, pl.Datetime):
        column = column.cast(pl.Datetime("us")).cast(pl.Int64) / 1_000_000
    if not column.dtype.is_numeric():
        raise ConfigError(f"rule freshness: column {rule.column!r} is {column.dtype}, expected numbers or dates.")
    values_N = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return np.nan_to_num(2.0 ** ((values_N - np.nanmax(values_N)) / rule.half_life))
