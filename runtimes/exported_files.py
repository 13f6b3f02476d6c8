"""Exported files: their metadata, how they are put in place, and those that are written and opened without PyTorch."""

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
"""Height and width of the images on which a written file is tried, where it is for any."""


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
    """Write the model of a checkpoint for a runtime without PyTorch, with the bytes that `Registry.export` writes.

    There is no module to compare the file with: it is opened again, and has to return finite outputs of the right
    number for images of its size.

    Args:
        catalogue: of the registry.
        source: path of a checkpoint, or what `Registry.build` takes.
        path: of the file.
        form: its format, of which a session is made.
        pretrained: as of `Registry.build`, for a name.
        arguments: of `Registry.build` or `Registry.load` besides, those that are None left out.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.

    Raises:
        OptionError: a format of PyTorch's own, or an invalid size or batch.
        WeightsError: the checkpoint cannot be read without PyTorch, does not fit, or lacks the head.
        ExportError: a part of the model has no nodes, or the file cannot be written or does not run. A file that was at
            the path before is unchanged.
    """
    if not form.session:
        raise OptionError(
            f"files of the format {form.name!r} are written by PyTorch, from a model: "
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
        with library_errors(f"the {form.name} file was written, and cannot be read again"):
            opened: Opened = load(form.session)(written, threads=default_threads())
        check_metadata(form.name, metadata, opened.metadata)
        images = np.random.default_rng(0).random((batch or 1, signature.channels, *(size or SIZE)), np.float32)
        with library_errors(f"the {form.name} file was written, and does not run"):
            outputs = opened.run(images)
        if len(outputs) != len(signature.outputs) or not all(np.isfinite(values).all() for values in outputs):
            raise ExportError(
                f"the {form.name} file of {request.label} is not kept: its outputs are not finite; look for NaN in the "
                "weights with featuretap inspect --finite"
            )
    return path


def open_backbone_file(
    catalogue: Catalogue, path: Path, taps: Sequence[str] | None = None, *, threads: int | None = None
) -> Session:
    """Open an exported backbone for some of its taps, in this order, or for all if `taps` is None.

    Raises:
        OptionError: the file holds no bare backbone, or lacks a tap.
        ExportError: as of `open_file`.
    """
    session = open_file(catalogue, usual_runtime(catalogue, path), path, threads)
    signature, run = session._signature, session._run
    if session.description.head or session.description.heads or not signature.taps:
        raise OptionError(
            f"{str(path)!r} returns {', '.join(signature.outputs)}, and the maps of a backbone are needed",
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


def usual_runtime(catalogue: Catalogue, path: Path) -> RuntimeSpec:
    """Return the first runtime that opens exported files with the ending of `path`."""
    return next(runtime for runtime in catalogue.runtimes if path.suffix in runtime.opens)


def export_metadata(
    catalogue: Catalogue, description: Description, signature: Signature, device: str = "cpu", dtype: str = "float32"
) -> dict[str, str]:
    """Return the metadata of an exported file: our description, the signature, and device and dtype of the images."""
    metadata = metadata_of(record_of_model(catalogue, description))
    # For safetensors files only.
    del metadata["format"]
    return {**metadata, SIGNATURE: signature.to_json(), DEVICE: device, DTYPE: dtype}


def check_metadata(form: str, metadata: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Check that a file that was read again has the metadata it was written with.

    Raises:
        ExportError: some of it is missing.
    """
    lost = sorted(key for key, value in metadata.items() if found.get(key) != value)
    if lost:
        raise ExportError(f"the {form} file was written without what it should say of its model: {', '.join(lost)}")


@contextmanager
def keep_on_success(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder, whose files are moved to the folder of `path` at the end, all or none.

    Raises:
        ExportError: the folder or the disk does not take them.
    """
    if path.exists() and not path.is_file():
        raise ExportError(f"cannot write {str(path)!r}: it exists, and is not a file")
    try:
        # In the target's folder, so that a folder that takes no files is known before the work.
        folder = TemporaryDirectory(dir=path.parent, prefix=".featuretap-")
    except OSError as error:
        raise ExportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    with folder as name:
        yield Path(name) / path.name
        # The weights of an .xml file before the file that refers to them.
        contents = {path.with_name(file.name): file.read_bytes() for file in sorted(Path(name).iterdir())}
        replace_files(contents, ExportError)
