"""Filters over an indexed log."""

from dataclasses import dataclass

import numpy as np

from onerec.data.settings import CoreSettings


@dataclass(frozen=True)
class Core:
    """What an iterative k-core keeps."""

    events: np.ndarray  # bool (N,)
    items: np.ndarray  # bool (I,): the catalogue that stays
    num_rounds: int  # rounds that dropped something


def find_core(users: np.ndarray, items: np.ndarray, num_items: int, settings: CoreSettings) -> Core:
    """Drop users and items with too few events until every one left has enough.

    Both sides are counted on the same events in each round, as in the preprocessing that the TIGER line inherits
    from S3-Rec (Zhou et al. 2020); the result is the same for any order of dropping.

    Args:
        users: int (N,) user index of each event.
        items: int (N,) item index of each event.
        num_items: size of the catalogue; without `settings.item_events` all of it stays.
    """
    rows = np.arange(len(users))
    num_rounds = 0
    while settings.user_events or settings.item_events:
        enough_users = np.bincount(users[rows]) >= settings.user_events
        enough_items = np.bincount(items[rows], minlength=num_items) >= settings.item_events
        staying = rows[enough_users[users[rows]] & enough_items[items[rows]]]
        if len(staying) == len(rows):
            break
        rows = staying
        num_rounds += 1
    kept = np.zeros(len(users), dtype=bool)
    kept[rows] = True
    catalogue = np.bincount(items[rows], minlength=num_items) >= settings.item_events
    return Core(events=kept, items=catalogue, num_rounds=num_rounds)
