"""Extractors that run sessions without PyTorch. Each thread reads and processes its own batches."""

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
"""As fast as larger batches, with less memory per thread."""

VARIANCE = "running_var"


def open_session(
    source: str | Path, *, taps: tuple[str, ...], size: tuple[int, int] | None, pretrained: bool | str = True
) -> Extractor:
    """Open an extractor that runs a session.

    Args:
        source: name of a backbone, or path of a checkpoint or exported file.
        taps: tap addresses.
        size: (height, width) of the images in pixels; None for the size in the checkpoint's preprocessing.
        pretrained: as in `registry.session`.

    Returns:
        The extractor.

    Raises:
        OptionError: the exported file lacks a tap, or takes images of another size or batches of a fixed size.
        FeaturetapError: the model needs PyTorch, or another error of `registry.session`.
    """
    if is_exported(registry.default, source):
        return _open_file(Path(source), taps, size)
    runtime = registry.default.runtime(RUNTIME)
    runtime.check_installed()
    arguments = {"features_only": True, "taps": taps}
    request, fitted = fit_weights(registry.default, source, pretrained, arguments)
    # One batch per thread is faster than several threads per batch, which wait for each other.
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
    """Return an extractor that runs an exported backbone. Its weights are identified by the digest of the file."""
    session = open_backbone_file(registry.default, path, taps, threads=1)
    if session.batch not in (None, 1):
        raise OptionError(
            f"{str(path)!r} only takes batches of {session.batch} images, and the last batch may be smaller; export it "
            "again without --batch"
        )
    if size and session.size and size != session.size:
        height, width = session.size
        raise OptionError(f"{str(path)!r} only takes images of {height}x{width} pixels; omit --size")
    return Extractor(
        session.description,
        session.taps,
        Preparation.of_model(session.description, size or session.size),
        sha256(path.read_bytes()).hexdigest(),
        partial(_compute_batches, session),
        session.batch or BATCH_SIZE,
    )


def _state_dict(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the float32 state dict of a module with these weights."""
    state = dict(tensors)
    for name, values in tensors.items():
        if values.dtype.kind == "f":
            state[name] = values.astype(np.float32)
        if name.endswith(VARIANCE):
            # Many files lack the counter, which state dicts have.
            counter = name.removesuffix(VARIANCE) + COUNTER
            state[counter] = np.asarray(tensors.get(counter, 0), np.int64)
    return state


def _compute_batches(
    session: Session, batches: Iterable[Batch], preparation: Preparation, pooled: bool, workers: int
) -> Generator[ComputedBatch, None, None]:
    """Yield the features of batches. `workers` is ignored, since Pillow and the runtime release the GIL."""

    def compute(batch: Batch) -> ComputedBatch:
        read = preparation.read(batch)
        maps = session(read.pixels) if read.pixels is not None else {}
        features = {name: _mean(values) if pooled else values for name, values in maps.items()}
        return ComputedBatch(read.shard, read.names, features, read.bad)

    return map_ahead(compute, batches, default_threads())


def _mean(maps: NDArray[Any]) -> NDArray[Any]:
    # NumPy's accurate pairwise summation needs one contiguous axis.
    means: NDArray[Any] = maps.reshape(*maps.shape[:2], -1).mean(2)
    return means
