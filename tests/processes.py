"""Processes that tests kill, watch or have train together, without what starting Python and its imports costs.

A server of `multiprocessing` imports once what all of them need, computes nothing itself, and forks each from itself:
none has anything of a test or of another process. What a command line does, only a real command can show; there is one
for `torchrun train.py` (tests/test_train.py) and one for `serve.py` (tests/test_serve.py).
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

_IMPORTS = [
    "train",
    "onerec.streaming.stage",
    "onerec.scaling.stage",
    "onerec.serving.server",
    "rl.stage",
    "deepspeed.runtime.zero.muon.original_muon",  # takes seconds, and every ZeRO training imports it
]


def prepared_context() -> ForkServerContext:
    """What starts processes that have the imports behind them."""
    multiprocessing.set_forkserver_preload(_IMPORTS)
    return multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server now, for code under test that would start one with fewer imports."""
    prepared_context()
    forkserver.ensure_running()


@contextmanager
def started(function: Callable[..., object], *arguments: object, log: Path | None = None) -> Iterator[BaseProcess]:
    """A process that calls a function of some module, and is killed, if it still runs, where the block ends.

    Args:
        log: file that what it prints is added to.
    """
    process = prepared_context().Process(target=_live, args=(function, arguments, log))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _live(function: Callable[..., object], arguments: tuple[object, ...], log: Path | None) -> None:
    with open(log or os.devnull, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    status = function(*arguments)
    sys.exit(status if isinstance(status, int) else 0)


def by_torchrun(num_processes: int, function: Callable[..., object], *arguments: object) -> None:
    """What torchrun does on one host, in this process: call the function in so many others, each told its place.

    Raises:
        ChildFailedError: one of them failed; it names the signal or the error.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method=prepared_context().get_start_method(),
        signals_to_handle="SIGTERM",  # Ctrl-C stays what it was
    )
    elastic_launch(config, _live_with_others)(function, arguments)


def _live_with_others(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)  # as torchrun has it where there are several
    function(*arguments)
