"""`registry.export`: a model as a file for a runtime, kept only once the runtime computes what the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn

from featuretap.models.built import unwrap
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.formats import Format, check_installed, for_detectors, format_of
from featuretap.runtimes.stated import stated
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import ExportError, FeaturetapError, WeightsError
from featuretap.support.import_strings import load

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["export", "kept_on_success"]


def export(
    registry: Registry,
    model: nn.Module,
    path: Path,
    format: str | None = None,  # noqa: A002 (the public name)
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Path:
    """Write a model as a file for a runtime; see `Registry.export`.

    Raises:
        OptionError: there is no such format, the path ends in another's, or the model was not built by featuretap.
        HeadError: the format cannot hold a model with this head.
        MissingExtraError: packages for the format are not installed.
        ExportError: the model cannot be exported, the file computes something else, or cannot be written. What was at
            the path before is as it was.
    """
    form = format_of(path, format)
    check_installed(form)
    description: Any = unwrap(model, "registry.export writes").description
    if description.preprocessing.inside:
        form = for_detectors(form, description.head)
    with kept_on_success(path) as written:
        prepared = load(form.prepare)(model, size, batch)
        metadata = stated(registry, prepared)
        _write(form, prepared, written, metadata)
        run = _read(form, written, metadata)
        try:
            load(form.verifier)(prepared, run)
        except FeaturetapError:
            raise
        except Exception as error:
            raise ExportError(f"the {form.name} file was written, and does not run ({_reason(error)})") from error
    return path


def _write(form: Format, model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    try:
        load(form.writer)(model, path, metadata)
    except FeaturetapError:
        raise
    except Exception as error:
        # Writers have errors of their own for what they cannot hold, and for a full disk.
        raise ExportError(f"cannot write {model.words} as {form.name} ({_reason(error)})") from error


def _read(form: Format, path: Path, metadata: Mapping[str, str]) -> Callable[[Any], Any]:
    try:
        said, run = load(form.reader)(path, threads=None)
    except FeaturetapError:
        raise
    except Exception as error:
        raise ExportError(f"the {form.name} file was written, and cannot be read again ({_reason(error)})") from error
    lost = sorted(key for key, value in metadata.items() if said.get(key) != value)
    if lost:
        raise ExportError(
            f"the {form.name} file was written without what it should say of its model: {', '.join(lost)}"
        )
    return run


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def kept_on_success(path: Path) -> Iterator[Path]:
    """Yield where files can be written that get to the folder of `path`, under their names, all or none.

    Raises:
        ExportError: the folder or the disk does not take them.
    """
    if path.exists() and not path.is_file():
        raise ExportError(f"cannot write {str(path)!r}: it exists, and is not a file")
    try:
        # Beside the target, to know before all the work whether the folder takes files.
        folder = TemporaryDirectory(dir=path.parent, prefix=".featuretap-")
    except OSError as error:
        raise ExportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    with folder as name:
        yield Path(name) / path.name
        # The weights of an .xml file before the file that refers to them.
        contents = {path.with_name(file.name): file.read_bytes() for file in sorted(Path(name).iterdir())}
        try:
            replace_files(contents)
        except WeightsError as error:
            raise ExportError(str(error)) from error
