"""`registry.export`: models as files for a runtime, kept only if the runtime computes what the model does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from featuretap.catalogue.catalogue import Catalogue
from featuretap.models.built import unwrap
from featuretap.models.saving import record_of_model
from featuretap.runtimes.exportable import DEVICE, DTYPE, SIGNATURE, Exportable, library_errors
from featuretap.runtimes.formats import resolve_format
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import ExportError
from featuretap.support.import_strings import load
from featuretap.weights.metadata import metadata_of


def export(
    catalogue: Catalogue,
    model: nn.Module,
    path: Path,
    format: str | None = None,  # noqa: A002 (the public name)
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Path:
    """Write a model as a file for a runtime; see `Registry.export`.

    Raises:
        ExportError: the file lacks metadata. A file that was at the path before is unchanged.
    """
    form = resolve_format(path, format)
    form.check_installed()
    description = unwrap(model, "registry.export writes").description
    if description.preprocessing.inside:
        form = form.of_detectors(description.head)
    functions = (form.prepare, form.writer, form.reader, form.verifier)
    prepare, write, read, verify = (load(f"featuretap.runtimes.{function}") for function in functions)
    with keep_on_success(path) as written:
        prepared: Exportable = prepare(model, size, batch)
        metadata = export_metadata(catalogue, prepared)
        with library_errors(f"cannot write {prepared.label} as {form.name}"):
            write(prepared, written, metadata)
        with library_errors(f"the {form.name} file was written, and cannot be read again"):
            found, run = read(written, threads=None)
        lost = sorted(key for key, value in metadata.items() if found.get(key) != value)
        if lost:
            raise ExportError(
                f"the {form.name} file was written without what it should say of its model: {', '.join(lost)}"
            )
        with library_errors(f"the {form.name} file was written, and does not run"):
            verify(prepared, run)
    return path


def export_metadata(catalogue: Catalogue, model: Exportable) -> dict[str, str]:
    """Return the metadata of an exported file: our description, the signature, device and dtype."""
    metadata = metadata_of(record_of_model(catalogue, model.description))
    # For safetensors files only.
    del metadata["format"]
    dtype = str(model.images.dtype).removeprefix("torch.")
    return {**metadata, SIGNATURE: model.signature.to_json(), DEVICE: model.images.device.type, DTYPE: dtype}


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
