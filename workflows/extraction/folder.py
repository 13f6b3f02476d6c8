"""The folder of a run: whose it is, what is done in it, and what is said of it when all is done. No torch."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import DataError, WeightsError
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.shards import Bad, contents_of

__all__ = ["ERRORS", "MANIFEST", "claimed", "finish", "read_manifest"]

MANIFEST = "manifest.json"
ERRORS = "errors.csv"
LOCK = ".lock"
TEMPORARY = ".featuretap-*.tmp"
DIGITS = 40

COMPARED = {
    "model": "model",
    "options": "options of the model",
    "size": "size of the images",
    "preprocessing": "preprocessing",
    "pooled": "pooling",
    "taps": "taps",
    "weights_sha256": "weights",
    "dtype": "dtype",
    "format": "format",
    "shard_size": "shard size",
    "images": "number of images",
    "images_sha256": "images",
}
"""What must be the same for a run to go on in a folder, in words."""


@contextlib.contextmanager
def claimed(job: Job, identity: Mapping[str, Any]) -> Iterator[list[int]]:
    """Claim a folder for a run, and give the numbers of the shards that are still to be made.

    The folder is made where there is none. Before anything is computed, `manifest.json` says what the run is.

    Args:
        job: the run.
        identity: what its manifest says before the shards are made; see `COMPARED`.

    Raises:
        DataError: the folder cannot be written to, holds something else or another run's features, is being written to
            by another process, a shard of it is damaged, or the disk has no room for the rest.
    """
    folder = job.folder
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not even a lock is put into a folder of something else.
        _own(folder)
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"another process is writing features into {str(folder)!r}; wait for it, or give another --out"
        ) from error
    except FileExistsError as error:
        raise DataError(f"{str(folder)!r} is a file; give a folder as --out") from error
    except OSError as error:
        raise DataError(f"cannot write into {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield _begun(job, identity)
    finally:
        lock.release()


def finish(job: Job, identity: Mapping[str, Any]) -> tuple[Bad, ...]:
    """Write what is known once all shards are there, and return the images that could not be read.

    Raises:
        DataError: none of the images could be read, or the folder does not take it.
    """
    shards = []
    bad: list[Bad] = []
    for shard in range(job.shards):
        path = job.path(shard)
        contents = contents_of(path)
        shards.append({"file": path.name, "rows": len(contents.names), "bytes": path.stat().st_size})
        bad += contents.bad
    if bad:
        _write(job.folder / ERRORS, _csv(bad))
    if len(bad) == len(job.images):
        raise DataError(
            f"none of the {len(bad)} images can be read, the first because {bad[0][1]}; "
            f"all are in {str(job.folder / ERRORS)!r}"
        )
    _write(job.folder / MANIFEST, _json({**identity, "rows": len(job.images) - len(bad), "shards": shards}))
    return tuple(bad)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a folder says of the features in it.

    Raises:
        DataError: it holds no manifest, or something else in its place.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} holds no features: cannot read {MANIFEST}: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not COMPARED.keys() <= manifest.keys():
        raise DataError(f"{str(path)!r} is none that featuretap extract wrote; give the --out of a run")
    return manifest


def _begun(job: Job, identity: Mapping[str, Any]) -> list[int]:
    """Make sure that a run can be made or go on, and return the numbers of the shards that are still to be made."""
    manifest = _own(job.folder)
    if manifest is not None:
        _check_same(job.folder, manifest, identity)
    for left_by_a_kill in job.folder.glob(TEMPORARY):
        left_by_a_kill.unlink()
    missing = [shard for shard in range(job.shards) if not job.path(shard).exists()]
    for shard in set(range(job.shards)) - set(missing):
        contents_of(job.path(shard))
    _check_room(job, missing)
    if manifest is None:
        _write(job.folder / MANIFEST, _json(identity))
    return missing


def _own(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the run that a folder is of, or None where it is empty."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    # A process that was killed before it wrote its manifest leaves these.
    ours = {folder / LOCK, *folder.glob(TEMPORARY)}
    others = sorted(path.name for path in folder.iterdir() if path not in ours)
    if others:
        raise DataError(f"{str(folder)!r} holds other things, such as {others[0]!r}; give a new folder as --out")
    return None


def _check_same(folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for key, words in COMPARED.items():
        # Channels and shapes of taps follow from what else is compared.
        there, asked = (list(run[key]) if key == "taps" else run[key] for run in (manifest, identity))
        if there != asked:
            raise DataError(
                f"{str(folder)!r} holds features of another run ({words}: {_words(there)} there, {_words(asked)} asked "
                "for); give another --out, or the same command again"
            )


def _words(value: Any) -> str:
    return json.dumps(value[:DIGITS] if isinstance(value, str) else value, ensure_ascii=False)


def _check_room(job: Job, missing: Sequence[int]) -> None:
    needed = job.row_bytes * sum(len(job.rows(shard)) for shard in missing)
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        raise DataError(
            f"the features need {needed / 1e9:,.1f} GB, and {str(job.folder)!r} has room for {free / 1e9:,.1f}; fewer "
            "--taps, --pool or --dtype float16 need less"
        )


def _write(path: Path, text: str) -> None:
    try:
        replace_files({path: text.encode()})
    except WeightsError as error:
        raise DataError(str(error)) from error


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _csv(bad: Sequence[Bad]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerows([("image", "reason"), *bad])
    return sink.getvalue()
