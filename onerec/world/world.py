"""The world itself: its log, written block by block, and the closed loop in which any policy may play.

U users of the world, B users of a request, n places of a slate.
"""

from collections.abc import Iterator

import numpy as np

from onerec.errors import DataError
from onerec.world.catalogue import make_catalogue
from onerec.world.outcomes import Chances, Outcomes, chances_of_slates, draw_outcomes
from onerec.world.policy import LoggingPolicy
from onerec.world.randomness import Purpose, fold, purpose_key, uniform
from onerec.world.settings import WorldSettings
from onerec.world.users import UserState, advance, events_per_user, initial_state, make_state, make_users, take

EVENT_COLUMNS: dict[str, type[np.generic]] = {
    "user_id": np.int64,
    "item_id": np.int64,
    "timestamp": np.int64,  # Unix seconds, strictly increasing within a user
    "click": np.uint8,
    "like": np.uint8,
    "follow": np.uint8,
    "skip": np.uint8,
    "watch_seconds": np.float32,
    "duration_seconds": np.float32,
    "propensity": np.float32,  # probability of the item at its place under the logging policy
}
_SECONDS_A_DAY = 86_400


class World:
    """A world follows from its settings: the same settings give the same items, users, log and outcomes.

    The closed loop is a chain of states: `state = world.users_at(users)`, then
    `outcomes, state = world.step(state, slates)` as often as wished. Two policies that start from one state meet the
    same luck, so their difference has little noise.
    """

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self.catalogue = make_catalogue(settings)
        self.policy = LoggingPolicy(settings, self.catalogue)
        self.num_events_U = events_per_user(settings)
        self.num_requests_U = -(-self.num_events_U // settings.slate_size)  # in the log

    def users_at(self, users_B: np.ndarray, requests_B: np.ndarray | None = None) -> UserState:
        """The state of users after so many requests; by default after all those of the log.

        Raises:
            DataError: a user this world does not have.
        """
        self._require_users(users_B)
        requests_B = self.num_requests_U[users_B] if requests_B is None else requests_B
        order_B = np.argsort(-requests_B, kind="stable")
        state = initial_state(
            self.settings, self.catalogue, make_users(self.settings, self.catalogue, users_B[order_B])
        )
        deviation_BF = state.deviation_BF.copy()
        walking = state
        for request in range(int(requests_B.max(initial=0))):
            num_walking = int((requests_B > request).sum())
            walking = advance(self.settings, self.catalogue, take(walking, slice(num_walking)))
            deviation_BF[:num_walking] = walking.deviation_BF
        back_B = np.argsort(order_B)
        users = make_users(self.settings, self.catalogue, users_B)
        return make_state(self.catalogue, users, requests_B, deviation_BF[back_B])

    def chances(self, state: UserState, slates_Bn: np.ndarray) -> Chances:
        """True chances of each place of the slates; of item 0 where a place is empty (-1)."""
        self._require_slates(state, slates_Bn)
        return chances_of_slates(self.catalogue, state, np.maximum(slates_Bn, 0))

    def step(self, state: UserState, slates_Bn: np.ndarray) -> tuple[Outcomes, UserState]:
        """Show each user a slate (item indices, -1 for an empty place): outcomes, and the users one request later.

        Raises:
            DataError: slates of another number of users, or an item this world does not have.
        """
        key_Bn = _place_keys(self._key(Purpose.OUTCOME), state, slates_Bn.shape[1])
        outcomes = draw_outcomes(self.chances(state, slates_Bn), key_Bn, slates_Bn >= 0)
        return outcomes, advance(self.settings, self.catalogue, state)

    def log(self) -> Iterator[dict[str, np.ndarray]]:
        """The log in blocks of whole users: for every column of `EVENT_COLUMNS` one array element an exposure.

        Rows are ordered by user, then by time; how they are cut into blocks follows `block_events`.
        """
        ends_U = np.cumsum(self.num_events_U)
        first = 0
        while first < self.settings.num_users:
            done = ends_U[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends_U, done + self.settings.block_events, "right")))
            yield self._log_of(np.arange(first, last))
            first = last

    def _log_of(self, users_B: np.ndarray) -> dict[str, np.ndarray]:
        """All events of some users."""
        # The most active first: those still there at a later request are then a prefix.
        users_B = users_B[np.argsort(-self.num_events_U[users_B], kind="stable")]
        num_events_B = self.num_events_U[users_B]
        offset_B = np.empty(len(users_B), np.int64)
        by_id_B = np.argsort(users_B)
        offset_B[by_id_B] = np.cumsum(num_events_B[by_id_B]) - num_events_B[by_id_B]
        block = {name: np.empty(num_events_B.sum(), dtype) for name, dtype in EVENT_COLUMNS.items()}
        state = self._new_users(users_B)
        watched_seconds_B = np.zeros(len(users_B))
        for request in range(int(self.num_requests_U[users_B].max())):
            num_active = int((self.num_requests_U[users_B] > request).sum())
            state = take(state, slice(num_active))
            place = request * self.settings.slate_size + np.arange(self.settings.slate_size)
            logged_Bn = place < num_events_B[:num_active, None]  # the last slate of a user may be cut short
            columns, state = self._logged_request(state, logged_Bn, watched_seconds_B[:num_active])
            rows_Bn = offset_B[:num_active, None] + place
            for name, values_Bn in columns.items():
                block[name][rows_Bn[logged_Bn]] = np.broadcast_to(values_Bn, rows_Bn.shape)[logged_Bn]
        return block

    def _new_users(self, users_B: np.ndarray) -> UserState:
        """Users before their first request."""
        return initial_state(self.settings, self.catalogue, make_users(self.settings, self.catalogue, users_B))

    def _logged_request(
        self, state: UserState, logged_Bn: np.ndarray, watched_seconds_B: np.ndarray
    ) -> tuple[dict[str, np.ndarray], UserState]:
        """Columns (B, n) of one request to the logging policy; adds to `watched_seconds_B` in place."""
        policy_key_Bn = _place_keys(self._key(Purpose.POLICY), state, logged_Bn.shape[1])
        slates_Bn = self.policy.draw_slates(state, policy_key_Bn)
        outcomes, next_state = self.step(state, np.where(logged_Bn, slates_Bn, -1))
        taken_Bn = np.cumsum(np.ceil(outcomes.watch_seconds) + 1.0, axis=1)  # a second to get to the next
        shown_at_Bn = np.concatenate([np.zeros((len(taken_Bn), 1)), taken_Bn[:, :-1]], axis=1)
        asked_at_B = self._request_time(state) + watched_seconds_B
        watched_seconds_B += taken_Bn[:, -1]
        columns = {
            "user_id": state.users.users_B[:, None],
            "item_id": slates_Bn,
            "timestamp": np.floor(asked_at_B)[:, None] + shown_at_Bn,
            "click": outcomes.click,
            "like": outcomes.like,
            "follow": outcomes.follow,
            "skip": outcomes.skip,
            "watch_seconds": outcomes.watch_seconds,
            "duration_seconds": self.catalogue.duration_seconds_N[slates_Bn],
            "propensity": self.policy.propensities(state, slates_Bn),
        }
        return columns, next_state

    def _request_time(self, state: UserState) -> np.ndarray:
        """Unix seconds of each user's next request, watching not counted: one in every equal part of the period."""
        users_B = state.users.users_B
        within_part_B = uniform(fold(self._key(Purpose.TIME), users_B), state.requests_B)
        part_seconds_B = self.settings.period_days * _SECONDS_A_DAY / self.num_requests_U[users_B]
        return self.settings.start.timestamp() + part_seconds_B * (state.requests_B + within_part_B)

    def _key(self, purpose: Purpose) -> np.ndarray:
        return purpose_key(self.settings.seed, purpose)

    def _require_users(self, users_B: np.ndarray) -> None:
        wrong = users_B[(users_B < 0) | (users_B >= self.settings.num_users)]
        if wrong.size:
            raise DataError(
                f"found user {wrong[0]} ({wrong.size} such), expected indices 0 to {self.settings.num_users - 1}."
            )

    def _require_slates(self, state: UserState, slates_Bn: np.ndarray) -> None:
        if slates_Bn.ndim != 2 or len(slates_Bn) != len(state.requests_B):
            raise DataError(
                f"found slates of shape {slates_Bn.shape}, expected one row for each of {len(state.requests_B)} users."
            )
        wrong = slates_Bn[(slates_Bn < -1) | (slates_Bn >= self.catalogue.num_items)]
        if wrong.size:
            raise DataError(
                f"found item {wrong[0]} in a slate ({wrong.size} such places), expected indices 0 to "
                f"{self.catalogue.num_items - 1}, or -1 for an empty place."
            )


def _place_keys(key: np.ndarray, state: UserState, num_places: int) -> np.ndarray:
    """A key (B, n) for every place of each user's next slate."""
    return fold(fold(fold(key, state.users.users_B), state.requests_B)[:, None], np.arange(num_places))
