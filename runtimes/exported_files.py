"""Exported files: metadata, atomic writing, and writing and reading without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from featuretap.catalogue.catalogue import Catalogue
from featuretap.runtimes.formats import Format
from featuretap.runtimes.sessions import Session, default_threads, fit_weights, open_file, write_model
from featuretap.runtimes.signature import (
    DEVICE,
    DTYPE,
    SIGNATURE,
    Array,
    Opened,
    Signature,
    check_sizes,
    library_errors,
)
from featuretap.specs import BackboneSpec, RuntimeSpec
from featuretap.specs.description import Description
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import ExportError, Hint, OptionError
from featuretap.support.import_strings import load
from featuretap.weights.metadata import metadata_of
from featuretap.weights.recording import record_of_model

SIZE = (65, 97)
"""(height, width) of the images that a written file is tested on if it accepts any size."""


def export_checkpoint(
    catalogue: Catalogue,
    source: str | os.PathLike[str] | BackboneSpec,
    path: Path,
    form: Format,
    pretrained: bool | str | os.PathLike[str] = True,
    arguments: Mapping[str, Any] | None = None,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Path:
    """Export a checkpoint without PyTorch. The file is identical to the one `Registry.export` writes.

    The written file is opened and run on random images. Its outputs must be finite.

    Args:
        catalogue: the registry's catalogue.
        source: path of a checkpoint, or the first argument of `Registry.build`.
        path: path of the file to write.
        form: file format.
        pretrained: as in `Registry.build`.
        arguments: other arguments of `Registry.build` or `Registry.load`; None values are ignored.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.

    Returns:
        `path`.

    Raises:
        OptionError: only PyTorch writes the format, or the size or batch is invalid.
        WeightsError: the checkpoint cannot be read without PyTorch, does not match the model, or lacks the head.
        ExportError: a part of the model has no ONNX nodes, or the file cannot be written or run. An existing file at
            `path` is kept.
    """
    if not form.session:
        raise OptionError(
            f"only PyTorch writes {form.name!r} files; load the model and export it: "
            "registry.export(registry.load(...), ...)"
        )
    form.check_installed()
    check_sizes(size, batch)
    request, fitted = fit_weights(catalogue, source, pretrained, arguments or {})
    proto, signature = write_model(request, fitted, size, batch)
    metadata = export_metadata(catalogue, fitted.description, signature)
    with keep_on_success(path) as written:
        with library_errors(f"cannot write {request.label} as {form.name}"):
            load(f"featuretap.runtimes.{form.graph_writer}")(proto, written, metadata)
        with library_errors(f"the written {form.name} file cannot be opened"):
            opened: Opened = load(form.session)(written, threads=default_threads())
        check_metadata(form.name, metadata, opened.metadata)
        images = np.random.default_rng(0).random((batch or 1, signature.channels, *(size or SIZE)), np.float32)
        with library_errors(f"the written {form.name} file does not run"):
            outputs = opened.run(images)
        if len(outputs) != len(signature.outputs) or not all(np.isfinite(values).all() for values in outputs):
            raise ExportError(
                f"cannot export {request.label} as {form.name}: the outputs are not finite; look for NaN in the "
                "weights with featuretap inspect --finite"
            )
    return path


def open_backbone_file(
    catalogue: Catalogue, path: Path, taps: Sequence[str] | None = None, *, threads: int | None = None
) -> Session:
    """Open an exported backbone.

    Args:
        catalogue: the registry's catalogue.
        path: the exported file.
        taps: the taps to return, in this order; None for all taps of the file.
        threads: number of runtime threads; None for the default.

    Returns:
        The session.

    Raises:
        OptionError: the file does not contain a bare backbone, or lacks a tap.
        ExportError: the file cannot be opened; see `open_file`.
    """
    session = open_file(catalogue, default_runtime(catalogue, path), path, threads)
    signature, run = session._signature, session._run
    if session.description.head or session.description.heads or not signature.taps:
        raise OptionError(
            f"{str(path)!r} returns {', '.join(signature.outputs)}, not the feature maps of a backbone",
            hint=Hint("export the model with", "features_only=True"),
        )
    missing = [name for name in taps or () if name not in signature.taps]
    if missing:
        raise OptionError(f"{str(path)!r} has no tap {missing[0]!r}; its taps are {', '.join(signature.taps)}")
    if taps is None:
        return session
    places = [signature.outputs.index(name) for name in taps]

    def run_taps(images: Array) -> list[Array]:
        outputs = run(images)
        return [outputs[place] for place in places]

    chosen = replace(signature, outputs=tuple(taps), taps={name: signature.taps[name] for name in taps})
    return Session(run_taps, chosen, session.description, session.runtime)


def default_runtime(catalogue: Catalogue, path: Path) -> RuntimeSpec:
    """Return the first runtime that opens files with the suffix of `path`."""
    return next(runtime for runtime in catalogue.runtimes if path.suffix in runtime.opens)


def export_metadata(
    catalogue: Catalogue, description: Description, signature: Signature, device: str = "cpu", dtype: str = "float32"
) -> dict[str, str]:
    """Return the metadata of an exported file.

    Args:
        catalogue: the registry's catalogue.
        description: the model's description.
        signature: the model's signature.
        device: device type of the images.
        dtype: dtype of the images, without "torch.".

    Returns:
        Metadata key → value.
    """
    metadata = metadata_of(record_of_model(catalogue, description))
    # Only safetensors files have this key.
    del metadata["format"]
    return {**metadata, SIGNATURE: signature.to_json(), DEVICE: device, DTYPE: dtype}


def check_metadata(form: str, metadata: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Check that a written file has its metadata.

    Args:
        form: name of the format, for the message.
        metadata: the written metadata.
        found: the metadata read from the file.

    Raises:
        ExportError: some metadata is missing or changed.
    """
    lost = sorted(key for key, value in metadata.items() if found.get(key) != value)
    if lost:
        raise ExportError(f"the written {form} file lacks metadata: {', '.join(lost)}")


@contextmanager
def keep_on_success(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; on success, move all files there to the folder of `path`, or none.

    Args:
        path: the target path.

    Yields:
        Path: the path to write to.

    Raises:
        ExportError: `path` is not a regular file, or the folder cannot be written to.
    """
    if path.exists() and not path.is_file():
        raise ExportError(f"cannot write {str(path)!r}: it exists and is not a file")
    try:
        # In the target's folder, so that a read-only folder fails before the export starts.
        folder = TemporaryDirectory(dir=path.parent, prefix=".featuretap-")
    except OSError as error:
        raise ExportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    with folder as name:
        yield Path(name) / path.name
        # Sorted, so that the .bin weights are in place before the .xml file that refers to them.
        contents = {path.with_name(file.name): file.read_bytes() for file in sorted(Path(name).iterdir())}
        replace_files(contents, ExportError)
