"""torch.compile with its Inductor backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from featuretap.runtimes.compilers import check_compiler, check_torchs_threads
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.fusing import folded
from featuretap.support.errors import ExportError

__all__ = ["compiled"]

# All models here share the code of one module, and versions of code are few unless they are counted for each.
ISOLATED: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
)


def compiled(model: Exportable, *, threads: int | None) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return images (N, C, H, W) → outputs, in the order of the model's signature.

    Raises:
        OptionError: threads that are not torch's.
        ExportError: there is no C++ compiler, or the model cannot be compiled.
    """
    check_torchs_threads("inductor", threads)
    check_compiler("inductor", model.images.device.type)
    module = replace(model, model=folded(model.model)).module
    run = torch.compile(module, dynamic=bool(model.dynamic), fullgraph=True, **ISOLATED)

    @torch.no_grad()
    def call(images: Tensor) -> Sequence[Tensor]:
        # Every memory format would be compiled for anew.
        made: Sequence[Tensor] = run(images.contiguous())
        return made

    try:
        # The first call compiles; what goes wrong should go wrong here.
        call(model.images)
    except Exception as error:
        raise ExportError(model.refusal(error)) from error
    return call
