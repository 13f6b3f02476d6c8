"""Check that optional packages are installed, such as those of `pip install 'featuretap[train]'`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from featuretap.support.errors import MissingExtraError

ABSENT = ("huggingface_hub", "timm", "torch", "torchvision")
"""Modules that `requirements-inference.txt` omits: PyTorch, and packages that depend on it or are used with it."""


def check_extra(feature: str, extra: str, modules: Iterable[str]) -> None:
    """Check that the packages of an extra are installed.

    Args:
        feature: the feature that needs them, such as "featuretap train".
        extra: name of the extra.
        modules: top-level modules of its packages.

    Raises:
        MissingExtraError: a module is not installed. The message names the extra.
    """
    check_modules(feature, modules, f"featuretap[{extra}]")


def check_modules(feature: str, modules: Iterable[str], requires: str = "") -> None:
    """Check that top-level modules are installed, without importing them.

    Args:
        feature: the feature that needs them.
        modules: names of the modules.
        requires: requirement that pip should install; by default the missing modules.

    Raises:
        MissingExtraError: a module is not installed.
    """
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        package = repr(requires) if requires else " ".join(absent)
        raise MissingExtraError(f"{feature} needs {', '.join(absent)}; run pip install {package}")


@contextmanager
def explain_missing_torch(feature: str) -> Iterator[None]:
    """Convert the import error of a missing PyTorch to a `MissingExtraError`.

    Args:
        feature: the feature that needs PyTorch, such as "featuretap bench".

    Yields:
        None: inside the context.

    Raises:
        MissingExtraError: the code inside imports PyTorch or another module of `ABSENT` that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ABSENT:
            raise
        absent = "PyTorch" if find_spec("torch") is None else error.name
        raise MissingExtraError(
            f"{feature} needs {absent}, which is not installed; run pip install featuretap"
        ) from error
