"""A batch by workers of Ray Data: the parts still to be made are a data set, and `map_batches` makes them.

They are the parts that one process would make, so that the answers are the same, and a run that was broken off may go
on with workers or without. Bundle, users and the folder of parts must lie where every worker finds them.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from tqdm import tqdm

from onerec.bundle import Bundle
from onerec.errors import ConfigError, ServingError
from onerec.serving.batch import BatchJob, Workers, opened_state
from onerec.serving.ray_cluster import start_ray
from onerec.serving.server import missing_package
from onerec.serving.stores import is_redis

_BLOCKS_A_WORKER = 16  # parts are dealt out in so many lots, that no worker waits long for the last


class PartWriter:
    """One worker: loads the bundle once, then makes parts."""

    def __init__(self, job: BatchJob) -> None:
        from kernels.memory import keep_freed_memory

        keep_freed_memory()
        self._stores = ExitStack()  # closed with the process
        histories, _ = self._stores.enter_context(opened_state(job.state))
        self._job, self._batch = job, job.open(Bundle.load(job.bundle), histories)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the parts that begin with the users of these numbers."""
        for start in rows["start"].tolist():
            self._job.write(self._batch, start)
        return rows


def write_parts(job: BatchJob, starts: Sequence[int], workers: Workers) -> None:
    """Make the parts that begin with the users of these numbers.

    Raises:
        ConfigError: no workers, packages of the extra `ray` are not installed, or histories that workers elsewhere do
            not find.
        ServingError: Ray cannot be reached, or a worker failed.
    """
    if workers.number < 1:
        raise ConfigError(f"workers: found {workers.number}, expected at least 1.")
    if job.state is not None and workers.cluster is not None and not is_redis(job.state):
        raise ConfigError(
            f"histories: found the SQLite file {job.state}, expected the address of a Redis, for workers in a cluster. "
            "Give it, or leave --cluster out."
        )
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError as error:
        raise missing_package(error, ("ray",), "ray") from None
    if not starts:
        return
    try:
        start_ray(workers.cluster)
        blocks = min(len(starts), _BLOCKS_A_WORKER * workers.number)
        todo = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=blocks)
        pool = ray.data.ActorPoolStrategy(size=workers.number)
        done = todo.map_batches(PartWriter, fn_constructor_args=(job,), batch_size=1, num_cpus=1, compute=pool)
        for _ in tqdm(done.iter_rows(), desc="users", unit="part", total=len(starts)):
            pass
    except (ConnectionError, RayError) as error:
        raise ServingError(f"the workers failed ({error}). What they have done is kept; run again to go on.") from error
    finally:
        ray.shutdown()
