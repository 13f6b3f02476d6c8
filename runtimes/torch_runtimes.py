"""PyTorch's compilers and file formats: torch.compile, AOTInductor, torch.export and TorchScript."""

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
"""Name of the extra file with featuretap's metadata as JSON. PyTorch can only read extra files whose names are
known."""

COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
"""PyTorch's C++ compiler if CXX is not set."""

# All models share one module's code, and torch.compile limits the recompilations of a piece of code unless they are
# counted for each model.
ISOLATED: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
)


class NamedInput(nn.Module):
    """A model whose input is named "image", as in all formats."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        """Return the outputs for images (N, C, H, W).

        The return type is Any, since TorchScript has no type for "a tensor or a dict".
        """
        return self.model(image)


class InBfloat16(nn.Module):
    """A model that computes in bfloat16. Inputs are float32; outputs are contiguous float32 tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.bfloat16()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images (N, C, H, W)."""
        outputs = self.model(images.bfloat16())
        return tuple([output.to(torch.float32, memory_format=torch.contiguous_format) for output in outputs])


def compile_fused(model: Exportable, *, threads: int | None) -> Run:
    """Return a function that runs a model with folded batch norms in eager PyTorch. Outputs are contiguous."""
    _check_threads("fused", threads)
    run = _runner(use_channels_last(_fuse(model)))
    return lambda images: [output.contiguous() for output in run(images)]


def compile_inductor(model: Exportable, *, threads: int | None) -> Run:
    """Return a function that runs a model with torch.compile's Inductor backend."""
    _check_threads("inductor", threads)
    _check_compiler("inductor", model)
    compiled = _runner(torch.compile(_fuse(model), dynamic=bool(model.dynamic), fullgraph=True, **ISOLATED))
    with model.export_errors():
        # Compilation happens in the first call.
        compiled(model.images)
    # Every memory format would trigger a recompilation.
    return lambda images: compiled(images.contiguous())


def compile_aot(model: Exportable, *, threads: int | None) -> Run:
    """Return a function that runs a model compiled with AOTInductor."""
    _check_threads("aot", threads)
    with TemporaryDirectory() as folder:
        path = write_aot(model, Path(folder) / "model.pt2", {})
        # The file can be deleted once the package is loaded.
        return _runner(torch._inductor.aoti_load_package(str(path)))


def open_aot(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Open an AOTInductor package.

    Args:
        path: the package.
        threads: must be PyTorch's number of threads, or None.

    Returns:
        The metadata and a function that runs the model.

    Raises:
        OptionError: `threads` differs from PyTorch's number of threads.
        ExportError: the file is a torch.export program, which also has the suffix .pt2.
    """
    _check_threads("aot", threads)
    if is_zipfile(path):
        names = ZipFile(path).namelist()
        if any("/models/" in name for name in names) and not any("/aotinductor/" in name for name in names):
            raise ExportError(
                f"{str(path)!r} is a torch.export program, not an AOTInductor package; open it with torch.export.load, "
                f"or write a package with featuretap export NAME {path.name} --format aot"
            )
    package: Any = torch._inductor.aoti_load_package(str(path))
    return dict(package.get_metadata()), _runner(package)


def write_aot(model: Exportable, path: Path, metadata: Mapping[str, str]) -> Path:
    """Compile a model into an AOTInductor package and return its path."""
    _check_compiler("aot", model)
    program = replace(model, model=fold_norms(model.model)).program()
    options = {
        "aot_inductor.metadata": dict(metadata),
        # Otherwise the current number of threads is compiled in.
        "cpp.dynamic_threads": True,
    }
    with model.export_errors(), quiet_exporters():
        return Path(torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options))


def write_program(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a torch.export program."""
    program = model.program(NamedInput(model.model).eval())
    # Otherwise the example images are written too.
    program.example_inputs = None
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    # PyTorch's file writer aborts the process when the disk is full.
    path.write_bytes(buffer.getbuffer())


def open_program(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Open a torch.export program, which always runs with PyTorch's number of threads; `threads` is ignored."""
    extra: dict[str, Any] = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    return json.loads(extra[METADATA]), _runner(program.module())


def write_script(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write TorchScript. Detectors take a list of images, as in torchvision."""
    module = model.model if model.description.preprocessing.inside else NamedInput(model.model).eval()
    problem = f"cannot export {model.label} as torchscript"
    advice = "; the formats torch-export and onnx support more Python code"
    with quiet_exporters():
        with library_errors(problem, advice, unchanged=()):
            scripted = torch.jit.script(module)
        buffer = BytesIO()
        torch.jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


def open_script(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Open a TorchScript file, which always runs with PyTorch's number of threads; `threads` is ignored."""
    module, metadata = load_script(path)
    return metadata, _runner(module)


def load_script(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """Return the module in a TorchScript file and its metadata."""
    extra: dict[str, Any] = {METADATA: ""}
    with quiet_exporters():
        module = torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    return module, json.loads(extra[METADATA])


def _fuse(model: Exportable) -> nn.Module:
    """Return a model's module with folded batch norms, in the requested precision."""
    module = replace(model, model=fold_norms(model.model)).module
    if model.precision == FLOAT32:
        return module
    # In bfloat16, rounding errors would hide a wrongly folded norm, so the float32 module is verified first.
    verify_outputs(replace(model, precision=FLOAT32), _runner(module))
    return InBfloat16(module).eval()


def _check_compiler(runtime: str, model: Exportable) -> None:
    """Raise a short error if the C++ compiler is missing, before PyTorch fails with a long traceback."""
    compiler = os.environ.get("CXX") or COMPILER
    if model.images.device.type == "cpu" and not shutil.which(compiler):
        raise ExportError(
            f"the runtime {runtime!r} needs a C++ compiler, and {compiler} is not installed; install it (apt install "
            "g++), or use the runtime 'onnxruntime'"
        )


def _check_threads(runtime: str, threads: int | None) -> None:
    if threads not in (None, torch.get_num_threads()):
        raise OptionError(
            f"the runtime {runtime!r} uses PyTorch's {torch.get_num_threads()} threads, not {threads}; call "
            f"torch.set_num_threads({threads}) first"
        )


def _runner(module: Any) -> Run:
    @torch.no_grad()
    def run(images: Tensor) -> Any:
        returned = module(images)
        if isinstance(returned, Tensor):
            return (returned,)
        return tuple(returned.values()) if isinstance(returned, dict) else returned

    return run
