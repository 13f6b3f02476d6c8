"""Compute shards on a Ray cluster. Ray is imported on first use."""

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
    """Compute complete shards in a Ray process, which keeps the extractor between shards."""

    def __init__(self, job: Any, extractor: Any, batch_size: int | None, workers: int) -> None:
        import ray

        self.job: Job = ray.get(job)
        self.extractor: Extractor = ray.get(extractor)
        self.batch_size = batch_size
        self.workers = workers

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of a row, and return its number of images or the error."""
        number = row["shard"]
        settings: Any = {"batch_size": self.batch_size, "workers": self.workers}
        try:
            for shard, features in compute_shards(self.job, self.extractor, [number], **settings):
                write_shard(self.job.path(shard), features)
        except FeaturetapError as error:
            # Ray would wrap an exception in a long report.
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
    """Compute shards on the cluster at `RAY_ADDRESS`, or on a local cluster.

    There is one process per GPU of the cluster, or one per CPU without GPUs. Each process writes its shards into the
    folder. All machines must see the folder and the images under the same paths.

    Args:
        job: images, shapes and folder.
        extractor: an extractor that runs a module; it is sent to the processes.
        shards: numbers of the shards.
        batch_size: number of images per batch; None for the extractor's default.
        workers: number of image-reading processes per Ray process.
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
            # One task at a time, so that no shard waits for a busy process while another is idle.
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
            raise DataError(f"Ray failed: {reason}; run the same command again to continue") from error


@contextlib.contextmanager
def _quiet_cluster() -> Iterator[Any]:
    # Ray reads these variables when it is imported or started.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray logs warnings about how Ray Data starts its processes.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, SystemExit, ValueError) as error:
        raise DataError(
            f"cannot reach the Ray cluster at {address!r} ({error}); start one with 'ray start --head', or unset "
            "RAY_ADDRESS to use a local cluster"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()
