"""Bundles that can place new items (a fitted tokenizer, an untrained model, forty films), and a real Redis."""

import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

NUM_ITEMS, VECTOR_WIDTH = 40, 6


class RedisServer:
    """A Redis of its own, which writes each change to disk before it answers; may be killed and started again."""

    def __init__(self, binary: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"redis://127.0.0.1:{port}/0"
        listen = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command = [binary, *listen, "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers."""
        import redis

        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                assert self._process.poll() is None
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def client(self) -> Any:
        """A client of its own."""
        import redis

        return redis.Redis.from_url(self.address)


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests; take `redis_server` instead, which is empty."""
    pytest.importorskip("redis", reason="no redis package in this environment")
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on this machine")
    server = RedisServer(binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A running Redis with nothing in it."""
    redis_process.start()
    redis_process.client().flushall()
    return redis_process


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """A place where a server may keep histories and changes, of each kind."""
    if request.param == "sqlite":
        return tmp_path / "state.sqlite"
    return str(request.getfixturevalue("redis_server").address)


@pytest.fixture(scope="session")
def live_items() -> pl.DataFrame:
    """Keys 100 to 139 in four kinds; the vectors of a kind lie together."""
    random = np.random.default_rng(0)
    kinds_N = np.arange(NUM_ITEMS) % 4
    vectors_ND = 5 * np.eye(4, VECTOR_WIDTH)[kinds_N] + random.normal(size=(NUM_ITEMS, VECTOR_WIDTH))
    return pl.DataFrame(
        {
            "item_id": [100 + item for item in range(NUM_ITEMS)],
            "title": [f"Film {100 + item}" for item in range(NUM_ITEMS)],
            "genre": [["drama", "comedy|drama", "horror", "noir"][kind] for kind in kinds_N],
            "year": [1990 + item % 3 for item in range(NUM_ITEMS)],
            "vector": vectors_ND.tolist(),
        }
    )


@pytest.fixture(scope="session")
def make_live_bundle(
    small_run: Any, live_items: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Write a bundle with its tokenizer; `shape` changes the model's, `groups` are the tokenizer's settings."""

    def make(with_tokenizer: bool = True, seed: int = 0, shape: dict[str, Any] | None = None, **groups: Any) -> Path:
        from onerec.bundle import write_bundle
        from tokenizer.config import TokenizerSettings
        from tokenizer.fit import fit_tokenizer, load_pieces
        from tokenizer.sequences import Sequences
        from tokenizer.settings import build_settings

        tree: dict[str, Any] = {
            "seed": seed,
            "text": {"weight": 0},
            "collaborative": {"weight": 0},
            "given": {"weight": 1, "source": "vector"},
            "quantizer": {"codes_per_level": [6, 5], "iterations": 5},
            "report": {"max_bucket_share": 1},
        }
        settings = build_settings(TokenizerSettings, tree | groups, "test")
        folder = tmp_path_factory.mktemp("live")
        sequences = Sequences(np.array([0, 3]), np.array([0, 1, 2], dtype=np.int32))
        columns = {"title": "title", "genre": "genre"}
        table = fit_tokenizer(live_items, sequences, settings, folder / "tokenizer", {}, "cfg", list(columns))
        model = make_model(table, load_pieces(folder / "tokenizer", table), seed, shape or {})
        schema = small_run.data.schema.model_copy(update={"category_columns": ("genre", "year")})
        data = dataclasses.replace(small_run.data, items=live_items, schema=schema)
        parts = (model, table, data, small_run.results, small_run.config, {"data": "d" * 64})
        write_bundle(folder / "bundle", *parts, tokenizer=folder / "tokenizer" if with_tokenizer else None)
        return folder / "bundle"

    return make


def make_model(table: Any, pieces: Any, seed: int, changes: dict[str, Any]) -> Any:
    """An untrained model of the table, far from uniform, so that items differ in score."""
    import torch

    from onerec.model.configuration import OneRecConfig
    from onerec.model.onerec import OneRec

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"d_model": 16, "d_ff": 32, "max_history_items": 8, **changes}
    if pieces is not None:
        shape["num_pieces"] = pieces.vocabulary_size
    model = OneRec(OneRecConfig(list(table.codes_per_level), table.num_items, **shape)).eval()
    model.set_codes(table.codes_NL, table.content_hash)
    if pieces is not None:
        cut = pieces.encode(table.codes_NL)
        model.set_pieces(cut.pieces_P, cut.offsets)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@pytest.fixture(scope="session")
def live_bundle(make_live_bundle: Callable[..., Path]) -> Path:
    """Folder of a bundle that places new items by their vectors, with suffixes; do not change it."""
    return make_live_bundle()
