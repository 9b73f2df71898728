"""A batch by the processes of torchrun, among which a model is shared out that is too large for one device.

The first process reads the users and writes the parts, as it would alone, and tells the others what to decode. The
bundle must lie where every process finds it. Scores may differ from those of one process by the rounding of sums, so
little that a run which was broken off may go on with other processes or with one.
"""

from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from onerec.bundle import Bundle
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.parallel.recommender import ParallelRecommender
from onerec.serving.batch import Batch, BatchJob


def write_parts_together(job: BatchJob, batch: Batch, missing: Sequence[int], processes: Processes) -> None:
    """The leader's: make the parts that begin with the users of these numbers, and let the others go.

    Raises:
        ConfigError: the model cannot be shared out to so many processes.
    """
    if missing:
        processes.tell(job)
        recommender = ParallelRecommender(batch.recommender, processes)
        together = replace(batch, recommender=recommender)
        for start in tqdm(missing, desc="users", unit="part"):
            job.write(together, start)
    processes.dismiss()


def help_leader(processes: Processes) -> None:
    """The others': decode with the leader until it has no more.

    Raises:
        ArtifactError, ConfigError: as the leader.
    """
    job = processes.hear()
    if job is not None:
        _, recommender = job.prepare(Bundle.load(job.bundle))
        ParallelRecommender(recommender, processes).follow()
    processes.leave()
