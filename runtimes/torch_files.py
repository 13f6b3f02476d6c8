"""Files of torch's own: programs of torch.export (.pt2) and TorchScript. Both return what the model itself does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.onnx_files import quiet
from featuretap.support.errors import ExportError

__all__ = ["STATED", "load_script", "open_program", "open_script", "save_script", "write_program", "write_script"]

Run = Callable[[Tensor], Sequence[Tensor]]

STATED = "featuretap.json"
"""The extra file inside that holds our metadata: a table of strings. Both libraries read extra files by name only."""


class Whole(nn.Module):
    """A model under the name of its input that all formats share."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        """Return what the model returns; TorchScript has no word for a tensor or a dict of them."""
        return self.model(image)


def write_program(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program of torch.export.

    Raises:
        ExportError: the model cannot be exported.
    """
    program = model.program(Whole(model.model).eval())
    # The images that it was traced with would be written too.
    program.example_inputs = None
    torch.export.save(program, path, extra_files={STATED: json.dumps(metadata)})


def open_program(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return what a program says of its model, and images (N, C, H, W) → outputs. Threads are torch's."""
    extra: dict[str, Any] = {STATED: ""}
    program = torch.export.load(path, extra_files=extra)
    return json.loads(extra[STATED]), _runner(program.module())


def write_script(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write TorchScript.

    Raises:
        ExportError: torch.jit.script cannot compile the model's code.
    """
    save_script(model, Whole(model.model).eval(), path, metadata)


def open_script(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return what TorchScript says of its model, and images (N, C, H, W) → outputs. Threads are torch's."""
    module, metadata = load_script(path)
    return metadata, _runner(module)


def save_script(model: Exportable, module: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a module as TorchScript.

    Raises:
        ExportError: torch.jit.script cannot compile the module's code.
    """
    with quiet():
        try:
            scripted = torch.jit.script(module)
        except Exception as error:
            # What TorchScript does not know in somebody's code has errors of many kinds, and of many lines.
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(
                f"cannot export {model.words} as torchscript ({reason[:200]}); torch-export and onnx take more "
                "kinds of code"
            ) from error
        torch.jit.save(scripted, path, _extra_files={STATED: json.dumps(metadata)})


def load_script(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """Return the module of a file, and what it says of its model."""
    extra: dict[str, Any] = {STATED: ""}
    with quiet():
        module = torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    return module, json.loads(extra[STATED])


def _runner(module: nn.Module) -> Run:
    @torch.no_grad()
    def run(images: Tensor) -> Sequence[Tensor]:
        made = module(images)
        return tuple(made.values()) if isinstance(made, dict) else (made,)

    return run
