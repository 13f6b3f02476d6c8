"""The shards of a run, made by the processes of a Ray cluster. Ray is imported when it is asked for."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from featuretap.support.errors import DataError, FeaturetapError
from featuretap.workflows.extraction.computing import compute
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.models import Model
from featuretap.workflows.extraction.shards import write

__all__ = ["extract_on_ray"]


class ShardMaker:
    """Makes whole shards in a process of Ray's, which keeps the model from one to the next.

    Args:
        job: a reference to what is extracted.
        model: a reference to the backbone.
        batch_size: images of a batch.
        workers: processes that read images for this one.
    """

    def __init__(self, job: Any, model: Any, batch_size: int, workers: int) -> None:
        import ray

        self.job: Job = ray.get(job)
        self.model: Model = ray.get(model)
        self.batch_size = batch_size
        self.workers = workers

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the shard that a row names, and add why it could not be made, if so, and how many images it has."""
        number = row["shard"]
        try:
            for shard, made in compute(
                self.job, self.model, [number], batch_size=self.batch_size, workers=self.workers
            ):
                write(self.job.path(shard), made, self.job.file_format)
        except FeaturetapError as error:
            # An exception would come back wrapped in a report of Ray's.
            return {"shard": number, "images": 0, "error": str(error)}
        return {"shard": number, "images": len(self.job.rows(number)), "error": ""}


def extract_on_ray(
    job: Job,
    model: Model,
    shards: Sequence[int],
    *,
    batch_size: int,
    workers: int,
    report: Callable[[int], None],
) -> None:
    """Make shards on the cluster at the address in `RAY_ADDRESS`, else on a cluster of this machine alone.

    Each process takes one shard after the other and writes it into the folder, which all machines see under one path,
    as they do the images. There is a process for each GPU of the cluster, or for each CPU where it has no GPU.

    Raises:
        DataError: a shard cannot be made or written.
    """
    with _quiet_cluster() as ray:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        processes = min(gpus or int(resources["CPU"]), len(shards))
        made = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
            ShardMaker,
            fn_constructor_args=(ray.put(job), ray.put(model), batch_size, workers),
            # One at a time, so that none waits in the queue of one process while another has nothing to do.
            compute=ray.data.ActorPoolStrategy(size=processes, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        try:
            for row in made.iter_rows():
                if row["error"]:
                    raise DataError(row["error"])
                report(row["images"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f"Ray has failed: {reason}; run the same command again, which goes on") from error


@contextlib.contextmanager
def _quiet_cluster() -> Iterator[Any]:
    # These are read when Ray is imported or started.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray Data makes its own processes in a way that Ray warns of.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, SystemExit, ValueError) as error:
        raise DataError(
            f"cannot reach the Ray cluster at {address!r} ({error}); start one with 'ray start --head', or unset "
            "RAY_ADDRESS to have one started here"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()
