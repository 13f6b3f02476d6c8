"""Gradient checkpointing: recompute activations in the backward pass instead of storing them.

Chen et al., arXiv 1604.06174. The recomputation does not update the running statistics of batch norms, which PyTorch's
`checkpoint` would update twice.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, x: Any) -> Any:
    """Run a module with its activations recomputed in the backward pass.

    Args:
        module: a module that maps a tensor to tensors.
        x: its input. If it is not a tensor, as when torch.fx traces, nothing is checkpointed.

    Returns:
        The output of the module.
    """
    if not isinstance(x, Tensor):
        return module(x)
    if torch.compiler.is_compiling():
        # torch.compile updates buffers once, and does not support `context_fn`.
        return checkpoint(module, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _keep_statistics(module)

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _keep_statistics(module: nn.Module) -> Iterator[None]:
    """Let norms update copies of their running statistics, and restore the originals afterwards."""
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
