"""The log: reproducible, the same whatever the blocks, of the stated probabilities, drifting."""

import itertools

import numpy as np
import pytest

from onerec.errors import ConfigError, DataError
from onerec.world.outcomes import Chances
from onerec.world.settings import WorldSettings
from onerec.world.users import UserState, initial_state, make_users, users_table
from onerec.world.world import EVENT_COLUMNS, World
from tokenizer.settings import build_settings

SMALL = WorldSettings(num_users=20, num_items=120, num_events=503, seed=3)


def joined_log(settings: WorldSettings) -> dict[str, np.ndarray]:
    """All blocks of a world's log as one."""
    blocks = list(World(settings).log())
    return {name: np.concatenate([block[name] for block in blocks]) for name in EVENT_COLUMNS}


def assert_same_log(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in EVENT_COLUMNS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


def test_the_same_seed_gives_the_same_log_and_another_seed_another() -> None:
    assert_same_log(joined_log(SMALL), joined_log(SMALL))
    other = joined_log(SMALL.model_copy(update={"seed": 4}))
    assert np.mean(other["item_id"] == joined_log(SMALL)["item_id"]) < 0.5


@pytest.mark.parametrize("block_events", [1, 37, 250, 502])
def test_blocks_change_nothing(block_events: int) -> None:
    cut = SMALL.model_copy(update={"block_events": block_events})
    assert len(list(World(cut).log())) > 1
    assert_same_log(joined_log(cut), joined_log(SMALL))


def test_a_block_holds_whole_users_and_no_more_events_than_allowed() -> None:
    world = World(SMALL.model_copy(update={"block_events": 100}))
    blocks = list(world.log())
    for earlier, later in itertools.pairwise(blocks):
        assert earlier["user_id"][-1] < later["user_id"][0]
    for block in blocks:
        assert len(block["user_id"]) <= 100 or len(set(block["user_id"])) == 1


def test_every_user_has_events_in_order_of_time_and_the_total_is_exact() -> None:
    log = joined_log(SMALL)
    assert len(log["user_id"]) == SMALL.num_events
    np.testing.assert_array_equal(np.unique(log["user_id"]), np.arange(SMALL.num_users))
    assert np.all(np.diff(log["user_id"]) >= 0)
    same_user = np.diff(log["user_id"]) == 0
    assert np.all(np.diff(log["timestamp"])[same_user] > 0)
    assert log["timestamp"].min() >= SMALL.start.timestamp()
    for name, dtype in EVENT_COLUMNS.items():
        assert log[name].dtype == dtype


def test_outcomes_agree_with_each_other() -> None:
    log = joined_log(SMALL)
    assert np.all(log["like"] <= log["click"])
    assert np.all(log["follow"] <= log["click"])
    np.testing.assert_array_equal(log["skip"], log["watch_seconds"] < 3)
    assert np.all(log["watch_seconds"] <= log["duration_seconds"])
    assert log["watch_seconds"].min() > 0
    np.testing.assert_array_equal(
        log["duration_seconds"], World(SMALL).catalogue.duration_seconds_N[log["item_id"]].astype(np.float32)
    )


def exposures(num_exposures: int) -> tuple[World, UserState, np.ndarray]:
    """A world and one slate of random items for many users."""
    world = World(WorldSettings(num_users=20_000, num_items=300, num_events=20_000, seed=11))
    users = np.arange(num_exposures // 5)
    slates = np.random.default_rng(0).integers(0, 300, (len(users), 5))
    return world, world.users_at(users), slates


def test_outcomes_have_the_stated_probabilities() -> None:
    world, state, slates = exposures(50_000)
    chances: Chances = world.chances(state, slates)
    outcomes, _ = world.step(state, slates)
    for name in ("click", "like", "follow", "skip"):
        stated, seen = getattr(chances, name), getattr(outcomes, name)
        # Within deciles of the stated probability too, so that errors which cancel in the mean still show.
        for part in np.array_split(np.argsort(stated, axis=None), 10):
            expected, count = stated.ravel()[part], seen.ravel()[part].sum()
            bound = 4.5 * np.sqrt((expected * (1 - expected)).sum()) + 1
            assert abs(count - expected.sum()) < bound, name


def test_watching_takes_the_stated_seconds() -> None:
    world, state, slates = exposures(50_000)
    stated = world.chances(state, slates).watch_seconds.ravel()
    seen = world.step(state, slates)[0].watch_seconds.ravel()
    for part in np.array_split(np.argsort(stated), 10):
        standard_error = (seen[part] - stated[part]).std() / np.sqrt(len(part))
        assert abs((seen[part] - stated[part]).mean()) < 4.5 * standard_error


def test_slates_come_with_the_stated_propensities() -> None:
    world = World(WorldSettings(num_users=1, num_items=100, num_events=1, seed=2))
    state = world.users_at(np.array([0]))
    every_item = np.arange(100)[None, :]
    stated = world.policy.propensities(state, every_item)[0]
    np.testing.assert_allclose(stated.sum(), 1.0, rtol=1e-12)
    num_draws = 200_000
    drawn = world.policy.draw_slates(state, np.arange(num_draws, dtype=np.uint64)[None, :])
    seen = np.bincount(drawn[0], minlength=100)
    assert np.all(np.abs(seen - stated * num_draws) < 4.5 * np.sqrt(stated * num_draws) + 1)


def test_a_log_is_the_closed_loop_under_the_logging_policy() -> None:
    """Replaying the log's slates through `step` from the users' first request gives the log's outcomes."""
    world, log = World(SMALL), joined_log(SMALL)
    user = int(np.argmax(world.num_events_U))
    mine = log["user_id"] == user
    state = world.users_at(np.array([user]), np.array([0]))
    items = log["item_id"][mine]
    replayed = []
    for start in range(0, len(items), SMALL.slate_size):
        outcomes, state = world.step(state, items[None, start : start + SMALL.slate_size])
        replayed.append(outcomes.watch_seconds[0])
    np.testing.assert_array_equal(np.concatenate(replayed).astype(np.float32), log["watch_seconds"][mine])
    at_the_end = world.users_at(np.array([user]))
    np.testing.assert_allclose(at_the_end.taste_BD, state.taste_BD, rtol=1e-12)
    np.testing.assert_array_equal(at_the_end.requests_B, state.requests_B)


def test_users_come_back_in_the_order_asked_for() -> None:
    world = World(SMALL)
    users, requests = np.array([7, 3, 15, 3]), np.array([2, 9, 0, 0])
    together = world.users_at(users, requests)
    for row, (user, request) in enumerate(zip(users, requests, strict=True)):
        alone = world.users_at(np.array([user]), np.array([request]))
        np.testing.assert_array_equal(together.taste_BD[row], alone.taste_BD[0])
        np.testing.assert_array_equal(together.users.favourites_BF[row], alone.users.favourites_BF[0])


def test_tastes_drift_away_with_time_and_only_if_drift_is_on() -> None:
    def mean_distance(settings: WorldSettings, num_requests: int) -> float:
        world, users = World(settings), np.arange(300)
        start, later = (world.users_at(users, np.full(300, requests)) for requests in (0, num_requests))
        return float(np.linalg.norm(later.taste_BD - start.taste_BD, axis=1).mean())

    drifting = WorldSettings(num_users=300, num_events=300)
    distances = [mean_distance(drifting, requests) for requests in (0, 1, 5, 25)]
    assert distances[0] == 0
    assert distances[1] > 0.02
    assert distances[2] > 1.5 * distances[1]
    assert distances[3] > 1.5 * distances[2]
    assert mean_distance(drifting.model_copy(update={"drift": 0.0}), 25) == 0


def test_drift_is_stationary() -> None:
    settings = WorldSettings(num_users=3_000, num_events=3_000)
    world = World(settings)
    users = np.arange(3_000)
    spreads = [world.users_at(users, np.full(3_000, requests)).deviation_BF.std() for requests in (0, 40)]
    np.testing.assert_allclose(spreads, 0.25 / np.sqrt(1 - 0.97**2), rtol=0.03)


def fading(settings: WorldSettings) -> float:
    """By how many standard errors a user's first clicks resemble the next ones more than the last ones."""
    log, places_ND = joined_log(settings), World(settings).catalogue.places_ND
    clicked_by_user = [
        places_ND[log["item_id"][(log["user_id"] == user) & (log["click"] == 1)]] for user in range(settings.num_users)
    ]
    differences = np.array(
        [
            clicked[:10].mean(axis=0) @ (clicked[10:20].mean(axis=0) - clicked[-10:].mean(axis=0))
            for clicked in clicked_by_user
            if len(clicked) >= 30
        ]
    )
    assert len(differences) > 250
    return float(differences.mean() / differences.std() * np.sqrt(len(differences)))


def test_drift_shows_in_the_clicks_and_only_if_drift_is_on() -> None:
    settings = WorldSettings(num_users=300, num_items=300, num_events=45_000, seed=5, activity_spread=0)
    assert fading(settings) > 4
    assert abs(fading(settings.model_copy(update={"drift": 0.0}))) < 3


def test_an_empty_place_shows_nothing() -> None:
    world = World(SMALL)
    outcomes, _ = world.step(world.users_at(np.array([0])), np.array([[5, -1, 7]]))
    np.testing.assert_array_equal(outcomes.shown, [[True, False, True]])
    for name in ("click", "like", "follow", "skip", "watch_seconds"):
        assert getattr(outcomes, name)[0, 1] == 0


def test_what_the_world_does_not_have_is_refused() -> None:
    world = World(SMALL)
    state = world.users_at(np.array([0, 1]))
    with pytest.raises(DataError, match=r"item 120 .*expected indices 0 to 119"):
        world.step(state, np.array([[0, 120], [1, 2]]))
    with pytest.raises(DataError, match="one row for each of 2 users"):
        world.step(state, np.array([[0, 1]]))
    with pytest.raises(DataError, match=r"user 20 .*expected indices 0 to 19"):
        world.users_at(np.array([20]))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"num_users": 10, "num_events": 9}, "at least one a user"),
        ({"popularity_share": 0.7, "random_share": 0.4}, "exceed 1"),
        ({"start": "2024-01-01T00:00:00"}, "no time zone"),
        ({"num_item": 500}, "num_items"),
    ],
)
def test_impossible_settings_are_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(WorldSettings, tree, origin="test")


def test_users_have_the_stated_categories() -> None:
    world = World(SMALL)
    table = users_table(SMALL)
    users = make_users(SMALL, world.catalogue, np.arange(SMALL.num_users))
    assert table.columns == ["user_id", "region", "age_group"]
    assert table["region"].n_unique() == len(np.unique(users.region_B))
    favourites = initial_state(SMALL, world.catalogue, users).users.favourites_BF
    assert all(len(set(row)) == SMALL.num_favourites for row in favourites)
