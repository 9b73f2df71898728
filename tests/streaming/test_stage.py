"""The stream stage on a tiny world: what it shows and keeps, that a kill changes nothing, and what it refuses."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from onerec.bundle import Bundle, build_trie
from onerec.data.histories import Histories, Split
from onerec.decoding.recommender import OneRecRecommender
from onerec.streaming.state import StreamState
from tests.processes import started
from tests.tiny_run import run_stage, write_config
from tokenizer.artifacts import read_manifest

CHANGES = """
data:
  world: {num_users: 40, num_events: 700, period_days: 8}
tokenizer:
  given: {weight: 0.5, source: vector}
  collaborative: {width: 8}
training: {max_positions_per_step: 128, checkpoint_steps: 2}
decoding: {num_beams: 5}
evaluation: {ks: [1, 10], protocols: [seen_excluded]}
stream: {partition_days: 2, learning_rate: 0.005}
"""


def run(config: Path, runs: Path, *overrides: str) -> int:
    return run_stage(config, runs, *overrides, stage="stream")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), CHANGES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The folder of runs with one complete stream; a test that changes it works on a copy."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(config, runs) == 0
    return runs


def days_of(runs: Path) -> list[Path]:
    return sorted((runs / "tiny" / "stream" / "days").iterdir())


def figures_of(runs: Path) -> dict:
    return json.loads((runs / "tiny" / "stream" / "metrics.json").read_text())


def test_each_partition_is_evaluated_before_it_is_trained_on(runs: Path) -> None:
    days, figures = days_of(runs), figures_of(runs)
    assert [each["name"] for each in figures["partitions"]] == [day.name for day in days]
    first, *others = (each["test_unseen"] for each in figures["partitions"])
    assert first["frozen"] == first["streamed"]  # nothing of the stream has been trained on
    assert all(each["frozen"] != each["streamed"] for each in others)
    overall = figures["overall"]["test_unseen"]
    weights = [each["frozen"]["targets"] for each in (first, *others)]
    recalls = [each["streamed"]["recall@10"] for each in (first, *others)]
    assert overall["streamed"]["recall@10"] == pytest.approx(np.average(recalls, weights=weights))
    assert overall["difference"]["recall@10"]["difference"] == pytest.approx(
        overall["streamed"]["recall@10"] - overall["frozen"]["recall@10"]
    )
    assert "Streaming" in (runs / "tiny" / "stream" / "report.html").read_text()


def test_a_state_holds_all_events_so_far_in_order_and_its_model_ranks_all_items_so_far(runs: Path) -> None:
    folder = runs / "tiny" / "stream"
    base = Histories.load(folder / "base" / "data" / "events")
    states = [StreamState.load(day) for day in days_of(runs)]
    num_events, num_items = base.num_events, 0
    for state, day in zip(states, figures_of(runs)["partitions"], strict=True):
        num_events += day["events"]
        histories = state.log.histories
        assert histories.num_events == num_events
        assert (histories.splits == Split.TRAIN).all()
        inside = np.setdiff1d(np.arange(1, num_events), histories.offsets)
        assert (histories.timestamps[inside] >= histories.timestamps[inside - 1]).all()
        assert state.table.num_items == state.log.num_items >= num_items
        num_items = state.log.num_items
    last = states[-1]
    assert num_items > read_manifest(folder / "base" / "data", "data").details["num_items"]
    recommender = OneRecRecommender(last.load_model(), build_trie(last.table), num_beams=num_items)
    ranking = recommender.recommend([last.log.histories.items[:3]], num_items, exclude_seen=False)
    assert sorted(ranking.items_BK[0]) == list(range(num_items))
    bundle = Bundle.load(folder / "bundle")
    served = bundle.recommender(num_items).recommend([last.log.histories.items[:3]], num_items, exclude_seen=False)
    np.testing.assert_array_equal(served.items_BK, ranking.items_BK)
    assert bundle.assigner is not None
    assert "synthetic short-video world" in (folder / "bundle" / "README.md").read_text()


def test_moments_go_on_with_the_rows(runs: Path) -> None:
    moments = [load_file(day / "optimizer.safetensors") for day in days_of(runs)]
    items = [StreamState.load(day).table.num_items for day in days_of(runs)]
    assert all(
        any(len(value) == count for value in each.values() if value.dim())
        for each, count in zip(moments, items, strict=True)
    )
    steps = [max(float(value) for name, value in each.items() if name.endswith(".step")) for each in moments]
    assert steps == sorted(set(steps))  # counted on, not from the start


def test_finished_partitions_are_kept_without_their_tables(config: Path, runs: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for day in days_of(runs) for path in day.rglob("*")}
    partition = runs / "tiny" / "stream" / "partitions" / days_of(runs)[0].name
    shutil.move(partition, tmp_path / "away")
    assert run(config, runs) == 0
    shutil.move(tmp_path / "away", partition)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_killed_stream_goes_on_to_the_same_weights_and_figures(config: Path, runs: Path, tmp_path: Path) -> None:
    second = days_of(runs)[1].name
    work = tmp_path / "tiny" / "stream" / "work" / second / "checkpoints"
    with started(run, config, tmp_path) as process:
        while process.is_alive() and not list(work.glob("checkpoint-*")):
            time.sleep(0.02)
    assert process.exitcode == -signal.SIGKILL
    assert len(days_of(tmp_path)) == 1
    assert run(config, tmp_path) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "events/items.npy"):
        for killed, unbroken in zip(days_of(tmp_path), days_of(runs), strict=True):
            assert (killed / name).read_bytes() == (unbroken / name).read_bytes()
    assert figures_of(tmp_path)["overall"] == figures_of(runs)["overall"]


def test_partitions_cut_elsewhere_over_a_run_of_ones_own_are_the_same_stream(
    config: Path, runs: Path, tmp_path: Path
) -> None:
    own = runs / "tiny" / "stream"
    shutil.copytree(own / "base", tmp_path / "tiny")
    settings = (own / "base" / "config.yaml").read_text().replace("name: base", "name: tiny")
    (tmp_path / "tiny" / "config.yaml").write_text(settings)
    changed = tmp_path / "changed.yaml"
    changed.write_text(
        f"{settings}\nstream: {{partitions: {own / 'partitions'}, max_partitions: 1, learning_rate: 0.005}}"
    )
    assert run(changed, tmp_path) == 0
    assert figures_of(tmp_path)["partitions"][0]["test_unseen"] == figures_of(runs)["partitions"][0]["test_unseen"]
    weights = [(days_of(root)[0] / "model.safetensors").read_bytes() for root in (tmp_path, runs)]
    assert weights[0] == weights[1]


def copy_of(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs, tmp_path / "runs")
    return tmp_path / "runs"


def test_states_of_another_tokenizer_are_refused(
    config: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = days_of(copy_of(runs, tmp_path))
    shutil.rmtree(second / "tokenizer")
    shutil.copytree(first / "tokenizer", second / "tokenizer")
    with pytest.raises(Exception, match=r"belongs to another catalogue|tokenizer/codes.npy|found hash"):
        StreamState.load(second)
    shutil.rmtree(first)  # the second state follows from one that is not there
    moved = runs / "tiny" / "stream" / "days" / first.name
    shutil.copytree(moved, first)
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["inputs"]["tokenizer"] = "0" * 64
    (first / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert run_copy(config, tmp_path / "runs") == 1
    message = capsys.readouterr().err
    assert "made from another tokenizer" in message
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", message))) == 2


def run_copy(config: Path, runs: Path) -> int:
    """Stream in a copied folder, whose base still names the place it was made in."""
    stored = runs / "tiny" / "stream" / "base" / "config.yaml"
    old = re.search(r"path: (\S+)/tiny/stream/partitions", stored.read_text())
    assert old is not None
    stored.write_text(stored.read_text().replace(old[1], str(runs)))
    return run(config, runs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.ema_decay=0.9", "training.ema_decay: found with --stage stream"),
        ("model.pathways={static: {}}", "model.pathways: found with --stage stream"),
        ("training.targets.sliding={}", "training.targets: found with --stage stream"),
        ("stream.partition_days=3", "holds a stream of another stream section"),
    ],
)
def test_what_it_cannot_follow_is_refused(
    config: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    root = runs if override.startswith("stream") else tmp_path
    assert run(config, root, override) == 1
    assert message in capsys.readouterr().err
