"""Shards computed by the processes of a Ray cluster; Ray is imported on first use."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from featuretap.support.errors import DataError, FeaturetapError
from featuretap.workflows.extraction.computing import Extractor, compute_shards
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.shards import write_shard

__all__ = ["extract_on_ray"]


class ShardWriter:
    """Computes complete shards in a process of Ray, which keeps the extractor from one to the next."""

    def __init__(self, job: Any, extractor: Any, batch_size: int | None, workers: int) -> None:
        import ray

        self.job: Job = ray.get(job)
        self.extractor: Extractor = ray.get(extractor)
        self.batch_size = batch_size
        self.workers = workers

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of a row, and return its number of images, or the error."""
        number = row["shard"]
        settings: Any = {"batch_size": self.batch_size, "workers": self.workers}
        try:
            for shard, features in compute_shards(self.job, self.extractor, [number], **settings):
                write_shard(self.job.path(shard), features)
        except FeaturetapError as error:
            # Ray would wrap an exception in a report of its own.
            return {"shard": number, "images": 0, "error": str(error)}
        return {"shard": number, "images": len(self.job.rows(number)), "error": ""}


def extract_on_ray(
    job: Job,
    extractor: Extractor,
    shards: Sequence[int],
    *,
    batch_size: int | None,
    workers: int,
    report: Callable[[int], None],
) -> None:
    """Compute shards on the cluster at the address in `RAY_ADDRESS`, else on a cluster of this machine alone.

    Each process computes one shard after the other and writes it into the folder, which all machines see under the same
    path, as they do the images. There is a process for each GPU of the cluster, or for each CPU where it has no GPU.

    Args:
        job: the images, shapes and folder.
        extractor: that runs a module; it is sent to the processes.
        shards: their numbers.
        batch_size: images of a batch; None for the extractor's default.
        workers: processes that read images for each process.
        report: called with the number of images of each shard.

    Raises:
        DataError: a shard cannot be computed or written.
    """
    with _quiet_cluster() as ray:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        processes = min(gpus or int(resources["CPU"]), len(shards))
        computed = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
            ShardWriter,
            fn_constructor_args=(ray.put(job), ray.put(extractor), batch_size, workers),
            # One at a time, so that none waits in the queue of one process while another is idle.
            compute=ray.data.ActorPoolStrategy(size=processes, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        try:
            for row in computed.iter_rows():
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
    # Ray Data starts its own processes in a way that Ray warns of.
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
