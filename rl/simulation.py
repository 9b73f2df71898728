"""The closed loop: users of the synthetic world play sessions against a policy, and their histories grow.

Time is a grid of occasions for a session, each of as many requests as a session may have. At every step of it all
tastes have drifted equally far and the same luck waits, whatever was shown before; a user who did not come, or has
left, is shown nothing there. So two policies on one grid meet the same users in the same moods with the same luck, and
their difference has little noise.

What a user watched enters his history by the rule that made the log into training data (`data.min_feedback`). Nothing
of the history, and nothing shown earlier in the session, is to be shown again: what a feed asks of the server by
`exclude_seen` and `exclude`. What is known of an event is known of those that come in play too, but for the time: the
grid has no clock.

Shapes: U users of the simulation, B users who ask at a step, n places of a slate, E exposures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onerec.data.pathways import History, UserEvents, events_of
from onerec.errors import ConfigError
from onerec.world.outcomes import Outcomes
from onerec.world.sessions import contentment, returns, stays
from onerec.world.users import UserState, take
from onerec.world.world import World

_FEEDBACK = ("click", "like", "follow", "skip", "watch_seconds")


@dataclass(frozen=True)
class Visitors:
    """Users who ask for a slate."""

    state: UserState  # the truth about them, for the oracle alone
    histories: list[UserEvents]  # oldest first
    excluded: list[np.ndarray]  # items that may not be shown


Player = Callable[[Visitors, int], np.ndarray]
"""A policy: visitors and the number of places in, slates (B, n) of item indices out, -1 for an empty place."""


@dataclass(frozen=True)
class Play:
    """What happened to all users of a simulation: totals of each, and one row an exposure."""

    sessions_U: np.ndarray
    requests_U: np.ndarray
    slate_size: int
    users_E: np.ndarray  # rows of the simulation, not the world's numbers
    items_E: np.ndarray
    expected_seconds_E: np.ndarray  # true expectation of the seconds watched
    watch_seconds_E: np.ndarray  # watched
    likes_E: np.ndarray

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.sessions_U)

    def per_user(self, values_E: np.ndarray) -> np.ndarray:
        """Sum (U,) of values over each user's exposures."""
        return np.bincount(self.users_E, values_E, minlength=self.num_users)


@dataclass(frozen=True)
class Simulation:
    """Users, where they stand, and how long they may play.

    Args:
        users_U: the world's numbers of the users.
        histories: what each has watched before, oldest first.
        min_feedback: least value of every named feedback for an exposure to enter the history.
        num_sessions: occasions for a session; all users take the first.
        max_requests: slates of a session at most.

    Raises:
        ConfigError: feedback that the closed loop does not have.
    """

    world: World
    users_U: np.ndarray
    histories: Sequence[History]
    min_feedback: Mapping[str, float]
    num_sessions: int
    max_requests: int

    def __post_init__(self) -> None:
        unknown = sorted(set(self.min_feedback) - set(_FEEDBACK))
        if unknown:
            raise ConfigError(f"data.min_feedback: found {unknown[0]!r}, expected one of {', '.join(_FEEDBACK)}.")

    def play(self, player: Player) -> Play:
        """Let the users play against a policy."""
        rounds = _Rounds(self, player)
        for session in range(self.num_sessions):
            rounds.open_session(first=session == 0)
            for _ in range(self.max_requests):
                rounds.next_request()
        return rounds.result()

    @cached_property
    def start(self) -> UserState:
        """The users at the end of the log."""
        return self.world.users_at(self.users_U)


class _Rounds:
    """The state of one play, step by step."""

    def __init__(self, simulation: Simulation, player: Player) -> None:
        num_users = len(simulation.users_U)
        self._simulation, self._player = simulation, player
        self._state = simulation.start
        self._histories = [replace(events_of(history), timestamps=None) for history in simulation.histories]
        self._shown = [np.empty(0, np.int64)] * num_users  # in this session
        self._present_U = np.zeros(num_users, dtype=bool)
        self._contentment_U = np.zeros(num_users)  # summed over this session's slates
        self._slates_U = np.zeros(num_users, np.int64)  # of the newest session
        self._sessions_U, self._requests_U = np.zeros(num_users, np.int64), np.zeros(num_users, np.int64)
        self._exposures: list[tuple[np.ndarray, ...]] = []

    def open_session(self, first: bool) -> None:
        """Let those users in who take the occasion."""
        mean_U = self._contentment_U / np.maximum(self._slates_U, 1)
        comes_U = np.ones_like(self._present_U) if first else returns(self._simulation.world, self._state, mean_U)
        self._present_U = comes_U
        self._sessions_U += comes_U
        self._contentment_U[comes_U] = 0.0
        self._slates_U[comes_U] = 0
        for user in np.flatnonzero(comes_U):
            self._shown[user] = np.empty(0, np.int64)

    def next_request(self) -> None:
        """One step of the grid: slates to those present, outcomes, and who stays."""
        world, state = self._simulation.world, self._state
        size = world.settings.slate_size
        slates_Un = np.full((len(self._present_U), size), -1, dtype=np.int64)
        rows_B = np.flatnonzero(self._present_U)
        if len(rows_B):
            slates_Un[rows_B] = self._player(self._visitors(rows_B), size)
        outcomes, self._state = world.step(state, slates_Un)
        content_U = contentment(outcomes)
        self._record(state, rows_B, slates_Un, outcomes)
        self._contentment_U += content_U
        self._slates_U += self._present_U
        self._requests_U += self._present_U
        self._present_U = self._present_U & stays(world, state, content_U)

    def result(self) -> Play:
        """Everything that happened."""
        columns = [np.concatenate(parts) for parts in zip(*self._exposures, strict=True)]
        size = self._simulation.world.settings.slate_size
        return Play(self._sessions_U, self._requests_U, size, *columns)

    def _visitors(self, rows_B: np.ndarray) -> Visitors:
        return Visitors(
            take(self._state, rows_B),
            [self._histories[user] for user in rows_B],
            [np.concatenate([self._histories[user].items, self._shown[user]]) for user in rows_B],
        )

    def _record(self, state: UserState, rows_B: np.ndarray, slates_Un: np.ndarray, outcomes: Outcomes) -> None:
        """Write the exposures down, and let the histories grow."""
        slates_Bn, shown_Bn = slates_Un[rows_B], outcomes.shown[rows_B]
        chances = self._simulation.world.chances(take(state, rows_B), slates_Bn)
        feedback = {name: getattr(outcomes, name)[rows_B] for name in _FEEDBACK}
        kept_Bn = shown_Bn.copy()
        for name, least in self._simulation.min_feedback.items():
            kept_Bn &= feedback[name] >= least
        users_Bn = np.broadcast_to(rows_B[:, None], slates_Bn.shape)
        columns = (users_Bn, slates_Bn, chances.watch_seconds, feedback["watch_seconds"], feedback["like"])
        self._exposures.append(tuple(column[shown_Bn] for column in columns))
        feedback["duration_seconds"] = chances.duration_seconds
        for row, user in enumerate(rows_B):
            self._shown[user] = np.concatenate([self._shown[user], slates_Bn[row, shown_Bn[row]]])
            kept_n = kept_Bn[row]
            known = {name: values_Bn[row, kept_n] for name, values_Bn in feedback.items()}
            self._histories[user] = _grown(self._histories[user], slates_Bn[row, kept_n], known)


def _grown(events: UserEvents, items: np.ndarray, feedback: Mapping[str, np.ndarray]) -> UserEvents:
    """The events with further ones, in the columns that they have; NaN where nothing is known of these."""
    unknown = np.full(len(items), np.nan)
    columns = {name: np.concatenate([values, feedback.get(name, unknown)]) for name, values in events.feedback.items()}
    return replace(events, items=np.concatenate([events.items, items]), feedback=columns)
