"""Gradient checkpointing: activations are computed again in the backward pass in place of being kept.

Chen et al., arXiv 1604.06174. The second computation leaves the running statistics of batch norms as they are, which
PyTorch's `checkpoint` alone updates twice.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, x: Any) -> Any:
    """Return the output of a module, whose activations are computed again in the backward pass.

    Args:
        module: that maps a tensor to tensors.
        x: its input. Nothing is checkpointed where it is not a tensor, as when torch.fx traces.
    """
    if not isinstance(x, Tensor):
        return module(x)
    if torch.compiler.is_compiling():
        # The compiler updates buffers once, and takes no context.
        return checkpoint(module, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _keep_statistics(module)

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _keep_statistics(module: nn.Module) -> Iterator[None]:
    """Give norms copies of their running statistics to update, and take them away again."""
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
