"""torch.compile with its Inductor backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from featuretap.registry.errors import ExportError
from featuretap.runtimes.compilers import check_compiler, check_torchs_threads
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.fusing import fold

__all__ = ["compiled"]


def compiled(model: Exportable, *, threads: int | None) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return images (N, C, H, W) → outputs, in the order of the model's signature.

    Raises:
        OptionError: threads that are not torch's.
        ExportError: there is no C++ compiler, or the model cannot be compiled.
    """
    check_torchs_threads("inductor", threads)
    check_compiler("inductor", model.images.device.type)
    fold(model.model)
    # Weights that cannot change are laid out for the processor once.
    run = torch.compile(model.module, dynamic=bool(model.dynamic), fullgraph=True, options={"freezing": True})

    @torch.no_grad()
    def call(images: Tensor) -> Sequence[Tensor]:
        made: Sequence[Tensor] = run(images)
        return made

    try:
        # The first call compiles; what goes wrong should go wrong here.
        call(model.images)
    except Exception as error:
        raise ExportError(model.refusal(error)) from error
    return call
