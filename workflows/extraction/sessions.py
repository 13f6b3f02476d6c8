"""Extractors that run sessions, without PyTorch: every thread reads a batch of images and computes its features."""

from collections.abc import Generator, Iterable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuretap import registry
from featuretap.runtimes.exported_files import open_backbone_file
from featuretap.runtimes.sessions import (
    Session,
    default_threads,
    fit_weights,
    is_exported,
    open_fitted,
)
from featuretap.support.errors import OptionError
from featuretap.support.threads import map_ahead
from featuretap.weights.expected_tensors import COUNTER
from featuretap.workflows.extraction.computing import (
    Batch,
    ComputedBatch,
    Extractor,
    Preparation,
    digest_weights,
)

RUNTIME = "onnxruntime"

BATCH_SIZE = 4
"""As fast as larger ones, with less memory for each thread."""

VARIANCE = "running_var"


def open_session(
    source: str | Path, *, taps: tuple[str, ...], size: tuple[int, int] | None, pretrained: bool | str = True
) -> Extractor:
    """Return an extractor that runs a session.

    Args:
        source: name of a backbone, or path of a checkpoint or an exported file.
        taps: addresses of the maps.
        size: (height, width) of the images in pixels; None for that of the weights' images.
        pretrained: as of `registry.session`.

    Raises:
        OptionError: the exported file lacks a tap, or is for images of another size or number.
        FeaturetapError: PyTorch is needed, or as `registry.session` does.
    """
    if is_exported(registry.default, source):
        return _open_file(Path(source), taps, size)
    runtime = registry.default.runtime(RUNTIME)
    runtime.check_installed()
    arguments = {"features_only": True, "taps": taps}
    request, fitted = fit_weights(registry.default, source, pretrained, arguments)
    # Threads that compute a batch each wait for one another less than those that share one.
    session = open_fitted(registry.default, runtime, request, fitted, threads=1)
    return Extractor(
        session.description,
        session.taps,
        Preparation.of_model(session.description, size),
        digest_weights(_state_dict(fitted.tensors)),
        partial(_compute_batches, session),
        BATCH_SIZE,
    )


def _open_file(path: Path, taps: tuple[str, ...], size: tuple[int, int] | None) -> Extractor:
    """Return an extractor that runs an exported backbone, whose weights are known by the digest of the file."""
    session = open_backbone_file(registry.default, path, taps, threads=1)
    if session.batch not in (None, 1):
        raise OptionError(
            f"{str(path)!r} takes {session.batch} images at a time, and the last batch may have fewer; export it again "
            "without --batch"
        )
    if size and session.size and size != session.size:
        height, width = session.size
        raise OptionError(f"{str(path)!r} takes images of {height}x{width} pixels only; leave --size out")
    return Extractor(
        session.description,
        session.taps,
        Preparation.of_model(session.description, size or session.size),
        sha256(path.read_bytes()).hexdigest(),
        partial(_compute_batches, session),
        session.batch or BATCH_SIZE,
    )


def _state_dict(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the state dict that a module in float32 has with these weights."""
    state = dict(tensors)
    for name, values in tensors.items():
        if values.dtype.kind == "f":
            state[name] = values.astype(np.float32)
        if name.endswith(VARIANCE):
            # Many files lack it.
            counter = name.removesuffix(VARIANCE) + COUNTER
            state[counter] = np.asarray(tensors.get(counter, 0), np.int64)
    return state


def _compute_batches(
    session: Session, batches: Iterable[Batch], preparation: Preparation, pooled: bool, workers: int
) -> Generator[ComputedBatch, None, None]:
    """Yield the features of batches. There are no `workers`: Pillow and the runtime release Python's lock."""

    def compute(batch: Batch) -> ComputedBatch:
        read = preparation.read(batch)
        maps = session(read.pixels) if read.pixels is not None else {}
        features = {name: _mean(values) if pooled else values for name, values in maps.items()}
        return ComputedBatch(read.shard, read.names, features, read.bad)

    return map_ahead(compute, batches, default_threads())


def _mean(maps: NDArray[Any]) -> NDArray[Any]:
    # Over one contiguous axis, along which NumPy adds in pairs.
    means: NDArray[Any] = maps.reshape(*maps.shape[:2], -1).mean(2)
    return means
