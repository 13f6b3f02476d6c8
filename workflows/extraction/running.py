"""Run and resume extractions, on this machine or a cluster."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import DataError
from featuretap.support.image_files import digest_of
from featuretap.support.version import __version__
from featuretap.workflows.extraction.computing import Extractor, compute_shards
from featuretap.workflows.extraction.job import Job, row_bytes
from featuretap.workflows.extraction.reading import MANIFEST, RUN_KEYS, read_manifest
from featuretap.workflows.extraction.shards import BadImage, read_names, write_shard

SCHEMA = 1
ERRORS = "errors.csv"
LOCK = ".lock"
TEMPORARY = ".featuretap-*.tmp"
MAXIMUM_LENGTH = 40
"""Maximum length of a value in messages."""


class Outcome(NamedTuple):
    """The result of a run.

    Args:
        read: number of images read by this run.
        bad: images of the job that could not be read.
    """

    read: int
    bad: tuple[BadImage, ...]


def extract(
    job: Job,
    extractor: Extractor,
    *,
    batch_size: int | None,
    workers: int,
    on_ray: bool = False,
    begin: Callable[[int], object] = lambda images: None,
    report: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """Compute the missing shards of a job, then write the manifest and the list of unreadable images.

    Args:
        job: the job.
        extractor: the backbone.
        batch_size: number of images per batch; None for the extractor's default.
        workers: number of processes that read images for PyTorch; 0 reads them in the main process.
        on_ray: whether to compute the shards on a Ray cluster.
        begin: called with the number of images to read.
        report: called with the number of images of each batch or, on Ray, of each shard.

    Returns:
        The outcome.
    """
    identity = _describe_run(job, extractor)
    with lock_folder(job, identity) as missing:
        read = sum(len(job.rows(shard)) for shard in missing)
        begin(read)
        if missing and on_ray:
            from featuretap.workflows.extraction.on_ray import extract_on_ray

            extract_on_ray(job, extractor, missing, batch_size=batch_size, workers=workers, report=report)
        else:
            settings: Any = {"batch_size": batch_size, "workers": workers}
            # If a shard cannot be written, closing the generator stops the threads that compute the next ones.
            with closing(compute_shards(job, extractor, missing, **settings, report=report)) as computed:
                for shard, features in computed:
                    write_shard(job.path(shard), features)
        return Outcome(read, _finish(job, identity))


@contextmanager
def lock_folder(job: Job, identity: Mapping[str, Any]) -> Iterator[list[int]]:
    """Create and lock the folder of a job.

    Args:
        job: the job.
        identity: the manifest that an interrupted run in the folder must match.

    Yields:
        list[int]: numbers of the missing shards.

    Raises:
        DataError: the folder is in use, cannot be written to, or contains other files or a different run.
    """
    folder = job.folder
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Before the lock, which would create a file in a folder that belongs to something else.
        _read_own_manifest(folder)
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"another process is writing features to {str(folder)!r}; wait until it ends, or use another --out"
        ) from error
    except FileExistsError as error:
        raise DataError(f"{str(folder)!r} is a file; use a folder as --out") from error
    except OSError as error:
        raise DataError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield _find_missing_shards(job, identity)
    finally:
        lock.release()


def _describe_run(job: Job, extractor: Extractor) -> dict[str, Any]:
    """Return the manifest of a run without its shards, with the types that JSON returns."""
    description, preparation = extractor.description, extractor.preparation
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "model": description.name,
        "options": {name: repr(value) for name, value in description.options.items()},
        "weights": None if description.weights is None else str(description.weights),
        "weights_sha256": extractor.weights_sha256,
        "taps": {
            address: {"channels": tap.channels, "stride": tap.stride, "shape": job.shapes[address]}
            for address, tap in extractor.taps.items()
        },
        "size": preparation.size,
        "preprocessing": preparation.preprocessing.as_table(),
        "pooled": job.pooled,
        "dtype": job.dtype,
        "format": job.file_format,
        "shard_size": job.shard_size,
        "images": len(job.images),
        "images_sha256": digest_of(job.images),
    }
    return dict(json.loads(json.dumps(manifest)))


def _find_missing_shards(job: Job, identity: Mapping[str, Any]) -> list[int]:
    """Check the folder, write the first manifest, and return the numbers of the shards to compute."""
    manifest = _read_own_manifest(job.folder)
    if manifest is not None:
        _check_same_run(job.folder, manifest, identity)
    for temporary in job.folder.glob(TEMPORARY):
        temporary.unlink()
    missing = [shard for shard in range(job.shards) if not job.path(shard).exists()]
    for shard in set(range(job.shards)) - set(missing):
        # Raises an error for damaged files.
        read_names(job.path(shard))
    needed = row_bytes(job.shapes, job.dtype) * sum(len(job.rows(shard)) for shard in missing)
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        raise DataError(
            f"the features need {needed / 1e9:,.1f} GB, but {str(job.folder)!r} only has {free / 1e9:,.1f} GB free; "
            "use fewer --taps, --pool or --dtype float16"
        )
    if manifest is None:
        _write_manifest(job.folder, identity)
    return missing


def _read_own_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest in a folder, or None if the folder is empty."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    # A process that was killed before it wrote the manifest leaves these files.
    ours = {folder / LOCK, *folder.glob(TEMPORARY)}
    others = sorted(path.name for path in folder.iterdir() if path not in ours)
    if others:
        raise DataError(f"{str(folder)!r} contains other files, such as {others[0]!r}; use a new folder as --out")
    return None


def _check_same_run(folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for key, label in RUN_KEYS.items():
        # Only compare the addresses: channels and shapes of taps follow from the other keys.
        found, requested = (list(run[key]) if key == "taps" else run[key] for run in (manifest, identity))
        if found != requested:
            raise DataError(
                f"{str(folder)!r} contains features of another run ({label}: {_abbreviate(found)} there, "
                f"{_abbreviate(requested)} requested); use another --out, or the original command"
            )


def _abbreviate(value: Any) -> str:
    return json.dumps(value[:MAXIMUM_LENGTH] if isinstance(value, str) else value, ensure_ascii=False)


def _finish(job: Job, identity: Mapping[str, Any]) -> tuple[BadImage, ...]:
    """Write the final manifest and the errors, and return the unreadable images."""
    shards = []
    bad: list[BadImage] = []
    for path in map(job.path, range(job.shards)):
        names, bad_images = read_names(path)
        shards.append({"file": path.name, "rows": len(names), "bytes": path.stat().st_size})
        bad += bad_images
    if bad:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("image", "reason"), *bad])
        replace_files({job.folder / ERRORS: text.getvalue().encode()}, DataError)
    if len(bad) == len(job.images):
        raise DataError(
            f"cannot read any of the {len(bad)} images (first error: {bad[0][1]}); "
            f"all errors are in {str(job.folder / ERRORS)!r}"
        )
    _write_manifest(job.folder, {**identity, "rows": len(job.images) - len(bad), "shards": shards})
    return tuple(bad)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    replace_files({folder / MANIFEST: content.encode()}, DataError)
