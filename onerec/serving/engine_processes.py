"""The endpoint by the processes of torchrun, among which a model is shared out that is too large for one device.

The first process listens, and the others decode with it what it decodes. What an endpoint of one process can, this one
can too, but for exact search, new items, and another bundle: each needs a model that one process has whole. Items are
removed and restored, requests filtered, as ever.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from onerec.bundle import Bundle
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.parallel.recommender import ParallelRecommender
from onerec.model.precision import Precision
from onerec.serving.engine import Engine


@contextmanager
def shared_out(engine: Engine, processes: Processes | None) -> Iterator[None]:
    """Within the block the engine's model is shared out among all processes, of which this is the first; None for one.

    Raises:
        ConfigError: the model cannot be shared out to so many processes.
    """
    if processes is None:
        yield
        return
    recommender = ParallelRecommender(engine.catalogue.recommender, processes)
    engine.catalogue = replace(engine.catalogue, recommender=recommender)
    try:
        yield
    finally:
        processes.dismiss()


def help_to_serve(bundle_folder: Path, processes: Processes, precision: Precision | None) -> None:
    """Decode with the first process until it has answered its last request.

    Raises:
        ArtifactError, ConfigError: as the first process.
    """
    for stop in (signal.SIGTERM, signal.SIGINT):  # which torchrun and terminals send to all
        signal.signal(stop, signal.SIG_IGN)
    ParallelRecommender(Bundle.load(bundle_folder).recommender(precision=precision), processes).follow()
    processes.leave()
