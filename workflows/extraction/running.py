"""A run from images to a folder of features: on this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featuretap.support.image_files import digest_of
from featuretap.support.version import __version__
from featuretap.workflows.extraction.computing import compute
from featuretap.workflows.extraction.folder import claimed, finish
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.models import Model
from featuretap.workflows.extraction.shards import Bad, write

__all__ = ["Outcome", "extract"]

SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """What a run did: how many images it had to read now, and which images of the job have no features."""

    read: int
    bad: tuple[Bad, ...]


def extract(
    job: Job,
    model: Model,
    *,
    batch_size: int,
    workers: int,
    on_ray: bool = False,
    begin: Callable[[int], None] = lambda images: None,
    report: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """Make the shards of a job that are not there yet, and write what is known of all of them.

    Args:
        job: what is extracted.
        model: the backbone that the job's shapes are of.
        batch_size: images of a batch.
        workers: processes that read images; 0 to read them where the backbone runs.
        on_ray: whether Ray's processes make the shards.
        begin: is told how many images there are to read.
        report: is told how many more were read.

    Raises:
        DataError: the folder cannot be used for this run, or no image can be read; see `claimed`, `finish`, `compute`.
    """
    identity = _identity(job, model)
    with claimed(job, identity) as missing:
        read = sum(len(job.rows(shard)) for shard in missing)
        begin(read)
        if missing and on_ray:
            from featuretap.workflows.extraction.on_ray import extract_on_ray

            extract_on_ray(job, model, missing, batch_size=batch_size, workers=workers, report=report)
        else:
            for shard, made in compute(job, model, missing, batch_size=batch_size, workers=workers, report=report):
                write(job.path(shard), made, job.file_format)
        return Outcome(read, finish(job, identity))


def _identity(job: Job, model: Model) -> dict[str, Any]:
    """Return what the manifest says of a run before its shards are made."""
    description = model.description
    taps: Any = model.backbone.taps
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": description.name,
        "options": {name: repr(value) for name, value in description.options.items()},
        "weights": None if description.weights is None else str(description.weights),
        "weights_sha256": model.digest(),
        "taps": {
            address: {"channels": tap.channels, "stride": tap.stride, "shape": list(job.shapes[address])}
            for address, tap in taps.items()
        },
        "size": list(model.size),
        "preprocessing": _plain(model.preprocessing.as_table()),
        "pooled": job.pooled,
        "dtype": job.dtype,
        "format": job.file_format,
        "shard_size": job.shard_size,
        "images": len(job.images),
        "images_sha256": digest_of(job.images),
    }


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    # As JSON gives it back, so that it can be compared.
    return {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}
