"""A limit on the size of networks that are described by files with options of other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from featuretap.support.errors import OptionError
from featuretap.weights.limits import MOST_MODULES


@contextmanager
def limited_modules() -> Iterator[None]:
    """Limit the modules that this thread can create to `MOST_MODULES`.

    Yields:
        None.

    Raises:
        OptionError: the limit is exceeded.
    """
    thread, count = get_ident(), 0

    def register(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal count
        count += get_ident() == thread
        if count > MOST_MODULES:
            raise OptionError(
                f"networks of more than {MOST_MODULES:,} modules are not built from the description in a file"
            )

    handle = register_module_module_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()
