"""AOTInductor: torch.export, compiled to a package (.pt2) that runs without Python's tracing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from featuretap.runtimes.compilers import check_compiler, check_torchs_threads
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.fusing import folded
from featuretap.runtimes.onnx_files import quiet
from featuretap.support.errors import ExportError

__all__ = ["compiled", "opened", "write_package"]

Run = Callable[[Tensor], Sequence[Tensor]]


def compiled(model: Exportable, *, threads: int | None) -> Run:
    """Return images (N, C, H, W) → outputs, in the order of the model's signature.

    Raises:
        OptionError: threads that are not torch's.
        ExportError: there is no C++ compiler, or the model cannot be compiled.
    """
    check_torchs_threads("aot", threads)
    with TemporaryDirectory() as folder:
        # Once loaded, the package is no longer read.
        return _runner(_loaded(write_package(model, Path(folder) / "model.pt2", {})))


def opened(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return what a package says of its model, and images → outputs.

    Raises:
        OptionError: threads that are not torch's.
        ExportError: a program of torch.export, whose files end in .pt2 too.
    """
    check_torchs_threads("aot", threads)
    if is_zipfile(path):
        names = ZipFile(path).namelist()
        if any("/models/" in name for name in names) and not any("/aotinductor/" in name for name in names):
            raise ExportError(
                f"{str(path)!r} is a program of torch.export, not a compiled one; read it with torch.export.load, "
                f"or write one that 'aot' opens with featuretap export NAME {path.name} --format aot"
            )
    package = _loaded(path)
    return dict(package.get_metadata()), _runner(package)


def write_package(model: Exportable, path: Path, metadata: Mapping[str, str]) -> Path:
    """Compile a model into a package that holds `metadata`, and return the package's path.

    Raises:
        ExportError: there is no C++ compiler, or the model cannot be compiled.
    """
    check_compiler("aot", model.images.device.type)
    program = replace(model, model=folded(model.model)).program()
    options = {
        "aot_inductor.metadata": dict(metadata),
        # Otherwise the number of threads that torch has now would be compiled in.
        "cpp.dynamic_threads": True,
    }
    try:
        with quiet():
            written = torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )
    except Exception as error:
        raise ExportError(model.refusal(error)) from error
    return Path(written)


def _loaded(path: Path) -> Any:
    return torch._inductor.aoti_load_package(str(path))


def _runner(package: Any) -> Run:
    @torch.no_grad()
    def run(images: Tensor) -> Sequence[Tensor]:
        made: Sequence[Tensor] = package(images)
        return made

    return run
