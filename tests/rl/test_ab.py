"""A/B in the world: figures by hand, the game as the server answers it, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.serving.engine import Engine
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendRequest
from onerec.world.settings import WorldSettings
from onerec.world.tables import write_world
from onerec.world.world import World
from rl.ab import GAP_METRICS, USER_METRICS, Measured, Resampling, compare, gap_closed, main, measure
from rl.arena import Arena, bundle_player, history_of
from rl.simulation import Play, Visitors
from tokenizer.artifacts import read_manifest, write_manifest
from tokenizer.settings import dump_yaml, load_settings

RESAMPLING = Resampling(num_samples=200, confidence=0.9, seed=0)
COUNTS_N = np.array([5, 0, 3, 9, 9, 9, 9, 9, 9, 9])  # item 1 is the coldest tenth


def two_users() -> Play:
    """User 0: two sessions, three slates of two places, one place empty. User 1: one slate."""
    return Play(
        sessions_U=np.array([2, 1]),
        requests_U=np.array([3, 1]),
        slate_size=2,
        users_E=np.array([0, 0, 0, 0, 0, 1, 1]),
        items_E=np.array([1, 2, 1, 3, 4, 3, 9]),
        expected_seconds_E=np.array([6.0, 6, 6, 6, 6, 10, 20]),
        watch_seconds_E=np.array([30.0, 30, 60, 0, 0, 90, 90]),
        likes_E=np.array([True, False, True, False, False, False, True]),
    )


def test_figures_by_hand() -> None:
    measured = measure(two_users(), COUNTS_N, RESAMPLING)
    first, second = (dict(zip(USER_METRICS, row, strict=True)) for row in measured.values_UM)
    assert first == {
        "true_watch_seconds": 5.0,  # 30 over six places, the empty one counted
        "watch_minutes": 2.0,
        "likes": 2,
        "sessions": 2,
        "requests_a_session": 1.5,
        "cold_share": pytest.approx(2 / 6),
    }
    assert second["true_watch_seconds"] == 15
    assert second["cold_share"] == 0
    assert measured.coverage == 0.5
    figures = measured.figures(RESAMPLING)
    assert figures["true_watch_seconds"]["mean"] == 10
    assert figures["true_watch_seconds"]["interval"] == [5, 15]  # of two users a resample may hold one alone
    assert figures["coverage"]["mean"] == 0.5
    np.testing.assert_allclose(measured.coverage_X.mean(), 0.5)


def of_constant(value: float, num_users: int = 8) -> Measured:
    noise_U = np.linspace(0, 1, num_users)  # the same for all: paired differences have none
    return Measured(np.tile((value + noise_U)[:, None], len(USER_METRICS)), 0.5, np.full(200, 0.5))


def test_differences_and_the_share_of_the_gap_are_paired() -> None:
    first, other, ceiling = of_constant(1), of_constant(2), of_constant(5)
    for figure in compare(other, first, RESAMPLING).values():
        expected = 0 if figure["difference"] == 0 else 1
        assert figure["difference"] == pytest.approx(expected)
        assert figure["interval"] == pytest.approx([expected, expected])
    for metric in GAP_METRICS:
        found = gap_closed(other, first, ceiling, RESAMPLING)[metric]
        assert found is not None
        assert found["share"] == pytest.approx(0.25)
        assert found["interval"] == pytest.approx([0.25, 0.25])


def test_a_gap_that_may_be_none_has_no_share() -> None:
    assert gap_closed(of_constant(2), of_constant(5), of_constant(5), RESAMPLING) == dict.fromkeys(GAP_METRICS)


# ---- the players -------------------------------------------------------------------------------------------------


def test_a_bundle_plays_what_the_server_would_answer(world_run: Path) -> None:
    arena = Arena.open(world_run)
    bundle = arena.load_bundle(world_run / "bundle")
    histories = [history_of(arena.data.histories, user).astype(np.int64) for user in range(70)]
    histories[3] = np.array([], dtype=np.int64)
    shown = [np.array([user % 100, 99 - user % 100]) for user in range(70)]
    excluded = [np.concatenate(pair) for pair in zip(histories, shown, strict=True)]
    visitors = Visitors(arena.world.users_at(np.arange(70)), histories, excluded)
    slates = bundle_player(bundle)(visitors, 5)
    engine = Engine(bundle, Limits())
    for user in range(70):
        request = RecommendRequest(history=histories[user].tolist(), exclude=shown[user].tolist(), k=5)
        answer = engine.answer([engine.query(request)])[0]
        assert [item.id for item in answer.items] == slates[user].tolist()


def test_ceiling_and_floors_are_in_their_order_and_show_nothing_twice(world_run: Path) -> None:
    arena = Arena.open(world_run)
    simulation = arena.simulation(200, 1, 3, seed=0)
    assert len(simulation.users_U) == 200
    plays = [simulation.play(player) for player in (arena.oracle(), arena.popularity(), arena.random(0))]
    by_oracle, by_popularity, by_chance = (measure(play, arena.item_counts(), RESAMPLING) for play in plays)
    assert by_oracle.values_UM[:, 0].mean() > by_popularity.values_UM[:, 0].mean() + 1
    assert by_oracle.values_UM[:, 0].mean() > by_chance.values_UM[:, 0].mean() + 1
    assert by_popularity.values_UM[:, 5].mean() < 0.01 < by_chance.values_UM[:, 5].mean()
    for play in plays:
        pairs = np.stack([play.users_E, play.items_E], axis=1)
        assert len(np.unique(pairs, axis=0)) == len(pairs)
        seen = [history_of(arena.data.histories, row) for row in range(3)]
        users = arena.data.users["user_id"].to_numpy()[:3]
        for user, history in zip(users, seen, strict=True):
            shown = play.items_E[simulation.users_U[play.users_E] == user]
            assert not np.isin(shown, history).any()


def test_simulated_users_stand_at_the_end_of_their_logs(world_run: Path) -> None:
    """Their histories are what they clicked in the log, up to its last event."""
    arena = Arena.open(world_run)
    simulation = arena.simulation(10, 1, 1, seed=3)
    log = {
        name: np.concatenate([block[name] for block in arena.world.log()])
        for name in ("user_id", "item_id", "click", "watch_seconds")
    }
    for user, history in zip(simulation.users_U, simulation.histories, strict=True):
        clicked = (log["user_id"] == user) & (log["click"] == 1)
        np.testing.assert_array_equal(history.items, log["item_id"][clicked])
        np.testing.assert_allclose(history.feedback["watch_seconds"], log["watch_seconds"][clicked])
    np.testing.assert_array_equal(simulation.start.requests_B, arena.world.num_requests_U[simulation.users_U])


# ---- the command -------------------------------------------------------------------------------------------------


def play(run: Path, *options: str) -> int:
    quick = ["--users", "60", "--sessions", "2", "--max-requests", "3", "--samples", "50"]
    return main(["--bundle", str(run / "bundle"), "--bundle", str(run / "align-bundle"), *quick, *options])


def test_the_command_prints_and_writes_every_figure(
    world_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(world_run, "--json", str(tmp_path / "one.json")) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "one.json").read_text())
    assert set(figures["policies"]) == {"A", "B", "oracle", "popularity", "random"}
    for metric in (*USER_METRICS, "coverage"):
        assert metric in printed
        means = {name: figures["policies"][name][metric]["mean"] for name in "AB"}
        found = figures["differences"]["B"][metric]
        assert found["difference"] == pytest.approx(means["B"] - means["A"])
        assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    shares = figures["gap_closed"]["B"]["true_watch_seconds"]
    truth = {name: policy["true_watch_seconds"]["mean"] for name, policy in figures["policies"].items()}
    assert shares["share"] == pytest.approx((truth["B"] - truth["A"]) / (truth["oracle"] - truth["A"]))
    assert figures["world"]["seed"] == 8
    assert figures["settings"]["users"] == 60
    assert play(world_run, "--json", str(tmp_path / "two.json")) == 0
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


def test_a_bundle_does_not_differ_from_itself(world_run: Path, tmp_path: Path) -> None:
    shutil.copytree(world_run / "bundle", tmp_path / "copy")
    options = ["--users", "40", "--sessions", "2", "--samples", "20", "--json", str(tmp_path / "figures.json")]
    assert main(["--bundle", str(world_run / "bundle"), "--bundle", str(tmp_path / "copy"), *options]) == 0
    for figure in json.loads((tmp_path / "figures.json").read_text())["differences"]["B"].values():
        assert figure == {"difference": 0, "interval": [0, 0]}


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.fixture
def changed_run(world_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    shutil.copytree(world_run, tmp_path / "changed")
    return tmp_path / "changed"


def reconfigure(run: Path, **changes: object) -> None:
    config = load_settings(RunConfig, run / "config.yaml")
    changed = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    (run / "config.yaml").write_text(dump_yaml(changed))


def test_another_world_is_refused(changed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = load_settings(RunConfig, changed_run / "config.yaml").data.world
    reconfigure(changed_run, world=world.model_copy(update={"seed": 9}))
    assert play(changed_run) == 2
    assert "found a catalogue of 100 items (100 ids of the world's), expected all 100 items of its world (seed 9)" in (
        capsys.readouterr().err
    )


def test_a_bundle_of_another_catalogue_is_refused(changed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(changed_run / "align-bundle", "bundle")
    inputs = {**manifest.inputs, "data": "another"}
    write_manifest(changed_run / "align-bundle", "bundle", inputs, manifest.config_hash, manifest.details)
    assert play(changed_run) == 2
    message = capsys.readouterr().err
    assert "align-bundle: made from the data of another world or catalogue: found hash another, expected" in message


def test_a_run_on_other_data_is_refused(changed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reconfigure(changed_run, source="embedded")
    assert play(changed_run) == 2
    assert "found a run on the source 'embedded', expected 'world'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--users", "0"], "--users: found 0, expected 1 or more"),
        (["--max-requests", "-1"], "--max-requests: found -1"),
        (["--confidence", "1"], "--confidence: found 1.0, expected a number between 0 and 1"),
        (["--run", "nowhere"], "cannot read the config nowhere/config.yaml"),
    ],
)
def test_options_out_of_range_are_refused(
    world_run: Path, option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(world_run, *option) == 2
    assert message in capsys.readouterr().err


def test_a_world_read_from_its_tables_must_be_as_it_was(changed_run: Path, tmp_path: Path) -> None:
    """The same world, but from a folder that has been written again with another log since."""
    settings = load_settings(RunConfig, changed_run / "config.yaml").data.world
    folder = tmp_path / "world"
    write_world(settings, folder)
    data = changed_run / "data"
    manifest = read_manifest(data, "data")
    files = read_manifest(folder, "world").files
    tables = {name: files[name] for name in ("events.parquet", "items.parquet", "users.parquet")}
    write_manifest(data, "data", tables, manifest.config_hash, manifest.details)
    reconfigure(changed_run, path=folder)
    assert Arena.open(changed_run).world.settings == settings
    write_world(settings.model_copy(update={"num_events": 6_000}), folder)
    with pytest.raises(Exception, match=r"events.parquet: changed since the run read it: found hash"):
        Arena.open(changed_run)


def test_worlds_are_rebuilt_exactly(world_run: Path) -> None:
    arena = Arena.open(world_run)
    expected = World(WorldSettings(num_users=250, num_items=100, num_events=5_000, seed=8))
    assert arena.world.settings == expected.settings
    assert Bundle.load(world_run / "bundle").items["title"].to_list() == expected.catalogue.titles()
