"""PyTorch's own compilers and files: torch.compile, AOTInductor, torch.export and TorchScript."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from featuretap.runtimes.exportable import Exportable, Run, quiet_exporters
from featuretap.runtimes.fusing import fold_norms, use_channels_last
from featuretap.runtimes.signature import library_errors
from featuretap.runtimes.verification import verify_outputs
from featuretap.specs.runtime import FLOAT32
from featuretap.support.errors import ExportError, OptionError

METADATA = "featuretap.json"
"""The extra file inside that holds our metadata: a table of strings. PyTorch reads extra files by name only."""

COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
"""PyTorch's C++ compiler where CXX names none."""

# All models here share the code of one module, and torch.compile limits the versions of code unless it counts for each.
ISOLATED: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
)


class NamedInput(nn.Module):
    """A model whose input has the name that all formats share."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        """Return the output for images (N, C, H, W); TorchScript has no type for a tensor or a dict of them."""
        return self.model(image)


class InBfloat16(nn.Module):
    """A model in bfloat16 for images in float32, with contiguous outputs in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.bfloat16()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images (N, C, H, W)."""
        outputs = self.model(images.bfloat16())
        return tuple([output.to(torch.float32, memory_format=torch.contiguous_format) for output in outputs])


def compile_fused(model: Exportable, *, threads: int | None) -> Run:
    """Return what runs a model with folded norms in PyTorch, without a compiler; outputs are contiguous."""
    _check_threads("fused", threads)
    run = _runner(use_channels_last(_fuse(model)))
    return lambda images: [output.contiguous() for output in run(images)]


def compile_inductor(model: Exportable, *, threads: int | None) -> Run:
    """Return what runs a model in torch.compile with its Inductor backend."""
    _check_threads("inductor", threads)
    _check_compiler("inductor", model)
    compiled = _runner(torch.compile(_fuse(model), dynamic=bool(model.dynamic), fullgraph=True, **ISOLATED))
    with model.export_errors():
        # The first call compiles.
        compiled(model.images)
    # Each memory format would be compiled for.
    return lambda images: compiled(images.contiguous())


def compile_aot(model: Exportable, *, threads: int | None) -> Run:
    """Return what runs a model in AOTInductor."""
    _check_threads("aot", threads)
    with TemporaryDirectory() as folder:
        path = write_aot(model, Path(folder) / "model.pt2", {})
        # A loaded package is no longer read.
        return _runner(torch._inductor.aoti_load_package(str(path)))


def open_aot(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return the metadata of a package of AOTInductor, and what runs it.

    Raises:
        OptionError: another number of threads than PyTorch's.
        ExportError: the file is a program of torch.export, whose names end in .pt2 too.
    """
    _check_threads("aot", threads)
    if is_zipfile(path):
        names = ZipFile(path).namelist()
        if any("/models/" in name for name in names) and not any("/aotinductor/" in name for name in names):
            raise ExportError(
                f"{str(path)!r} is a program of torch.export, not a compiled one; read it with torch.export.load, "
                f"or write one that 'aot' opens with featuretap export NAME {path.name} --format aot"
            )
    package: Any = torch._inductor.aoti_load_package(str(path))
    return dict(package.get_metadata()), _runner(package)


def write_aot(model: Exportable, path: Path, metadata: Mapping[str, str]) -> Path:
    """Compile a model into a package of AOTInductor, and return the package's path."""
    _check_compiler("aot", model)
    program = replace(model, model=fold_norms(model.model)).program()
    options = {
        "aot_inductor.metadata": dict(metadata),
        # Without it, the current number of threads is compiled in.
        "cpp.dynamic_threads": True,
    }
    with model.export_errors(), quiet_exporters():
        return Path(torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options))


def write_program(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program of torch.export."""
    program = model.program(NamedInput(model.model).eval())
    # The example images would be written too.
    program.example_inputs = None
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    # Written by PyTorch's own writer, a full disk would end the process.
    path.write_bytes(buffer.getbuffer())


def open_program(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return the metadata of a program, and what runs it, always with PyTorch's threads."""
    extra: dict[str, Any] = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    return json.loads(extra[METADATA]), _runner(program.module())


def write_script(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write TorchScript; that of a detector takes a list of images, as torchvision's detectors do."""
    module = model.model if model.description.preprocessing.inside else NamedInput(model.model).eval()
    problem, advice = f"cannot export {model.label} as torchscript", "; torch-export and onnx take more kinds of code"
    with quiet_exporters():
        with library_errors(problem, advice, unchanged=()):
            scripted = torch.jit.script(module)
        buffer = BytesIO()
        torch.jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


def open_script(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return the metadata of TorchScript, and what runs it, always with PyTorch's threads."""
    module, metadata = load_script(path)
    return metadata, _runner(module)


def load_script(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """Return the module in a file of TorchScript, and its metadata."""
    extra: dict[str, Any] = {METADATA: ""}
    with quiet_exporters():
        module = torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    return module, json.loads(extra[METADATA])


def _fuse(model: Exportable) -> nn.Module:
    """Return a model's module with folded norms, in the model's precision."""
    module = replace(model, model=fold_norms(model.model)).module
    if model.precision == FLOAT32:
        return module
    # Rounding would hide a norm that is folded wrongly.
    verify_outputs(replace(model, precision=FLOAT32), _runner(module))
    return InBfloat16(module).eval()


def _check_compiler(runtime: str, model: Exportable) -> None:
    """Report a missing compiler before PyTorch does, in a long traceback."""
    compiler = os.environ.get("CXX") or COMPILER
    if model.images.device.type == "cpu" and not shutil.which(compiler):
        raise ExportError(
            f"the runtime {runtime!r} compiles C++, and there is no {compiler} on this machine; install one "
            "(apt install g++), or take the runtime 'onnxruntime'"
        )


def _check_threads(runtime: str, threads: int | None) -> None:
    if threads not in (None, torch.get_num_threads()):
        raise OptionError(
            f"the runtime {runtime!r} computes with torch's {torch.get_num_threads()} threads, not {threads}; call "
            f"torch.set_num_threads({threads}) before"
        )


def _runner(module: Any) -> Run:
    @torch.no_grad()
    def run(images: Tensor) -> Any:
        returned = module(images)
        if isinstance(returned, Tensor):
            return (returned,)
        return tuple(returned.values()) if isinstance(returned, dict) else returned

    return run
