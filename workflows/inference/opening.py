"""Open the model of a command: a session if possible, otherwise PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from featuretap import registry
from featuretap.catalogue.pretrained import is_location
from featuretap.runtimes.exported_files import default_runtime, export_checkpoint, open_backbone_file
from featuretap.runtimes.sessions import is_exported
from featuretap.support.errors import FeaturetapError, MissingExtraError, OptionError
from featuretap.workflows.inference.predictor import DEFAULT_BACKBONE, PRETRAINED, Predictor, predicting_heads

if TYPE_CHECKING:
    from featuretap.runtimes.formats import Format

Opened = TypeVar("Opened")

GPU = Path("/dev/nvidia0")
"""Exists on Linux if there is a GPU that PyTorch can use, which is faster than a session on the CPU."""


def open_predictor(
    name: str | None, weights: str | None, use_torch: bool = False, head: str | None = None
) -> Predictor:
    """Open a trained model that predicts classes.

    Args:
        name: name of the backbone; None for the file's backbone or the default.
        weights: a tag, a file or its URL, or None or "default" for the catalogue's default.
        use_torch: whether to use PyTorch even if a session could run the model.
        head: one of the file's heads; None for all.

    Returns:
        The model.

    Raises:
        OptionError: `weights` is "none", the model predicts no classes, or its classifier is randomly initialized.
    """
    if weights == "none":
        raise OptionError("predictions with random weights are meaningless; choose other weights, or omit --weights")
    predictor = _open(name, weights, use_torch, **({"head": head} if head else {}))
    description = predictor.description
    if not predicting_heads(description):
        raise OptionError(
            f"cannot predict with {weights!r}: it has no classifier, detector or segmenter for {description.name!r}"
        )
    if description.random_head:
        raise OptionError(f"cannot predict with {weights!r}: it has no classifier for {description.name!r}")
    return predictor


def open_backbone(
    name: str | None, weights: str | None, taps: tuple[str, ...] | None, use_torch: bool = False
) -> Predictor:
    """Open a backbone for its feature maps.

    Args:
        name: name of the backbone; None for the file's backbone or the default.
        weights: as for `open_predictor`, or "none" for random weights. None also means random weights if the catalogue
            has no default.
        taps: tap addresses; None for all levels.
        use_torch: as for `open_predictor`.

    Returns:
        The backbone.
    """
    if weights is None:
        entries = registry.default.weights_of(name or DEFAULT_BACKBONE)
        weights = "default" if entries and entries[0].default else "none"
    if check_exported(name, weights, use_torch):
        return open_backbone_file(registry.default, Path(weights or ""), taps)
    return _open(name, weights, use_torch, features_only=True, taps=taps)


def find_session(
    open_session: Callable[..., Opened], name: str | None, weights: str | None, **arguments: Any
) -> Opened | None:
    """Open a session unless only PyTorch can run the model or a GPU is available.

    Args:
        open_session: a function with the arguments of `registry.session`.
        name: name of the backbone; None for the file's backbone or the default.
        weights: as for `open_predictor`, or "none" for random weights.
        **arguments: other arguments of `open_session`.

    Returns:
        The session, or None if PyTorch should run the model.

    Raises:
        FeaturetapError: the session cannot be opened, and PyTorch is not installed or cannot open the file either.
    """
    has_torch = find_spec("torch") is not None
    exported = is_exported(registry.default, weights)
    if has_torch and not exported and (weights == "none" or GPU.exists()):
        return None
    try:
        if exported or (name is None and is_location(weights)):
            return open_session(weights, **arguments)
        pretrained = PRETRAINED.get(weights, weights or "")
        return open_session(name or DEFAULT_BACKBONE, pretrained=pretrained, **arguments)
    except FeaturetapError:
        # PyTorch may open the model; otherwise its error message is the relevant one.
        if exported or not has_torch:
            raise
        return None


def export_without_torch(
    source: str,
    weights: str | None,
    target: Path,
    form: Format,
    arguments: Mapping[str, Any],
    *,
    size: tuple[int, int] | None,
    batch: int | None,
) -> bool:
    """Try to export a checkpoint without PyTorch.

    Args:
        source: name of a backbone, or a weights file or its URL.
        weights: as for `open_predictor`, or "none" for random weights; only for a name.
        target: path of the file to write.
        form: file format.
        arguments: other arguments of `registry.build` or `registry.load`.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.

    Returns:
        Whether the file was written.

    Raises:
        FeaturetapError: the export failed, and PyTorch is not installed.
    """
    if not form.session or weights == "none":
        return False
    pretrained = PRETRAINED.get(weights, weights or "")
    try:
        export_checkpoint(registry.default, source, target, form, pretrained, arguments, size=size, batch=batch)
    except FeaturetapError:
        if find_spec("torch") is None:
            raise
        return False
    return True


def check_exported(name: str | None, weights: str | None, use_torch: bool) -> bool:
    """Return whether the weights are an exported file, and check that the other options are compatible with one.

    Args:
        name: value of --model.
        weights: value of --weights.
        use_torch: value of --torch.

    Returns:
        Whether `weights` is the path of an exported file.

    Raises:
        OptionError: --model or --torch is given with an exported file.
    """
    if not is_exported(registry.default, weights):
        return False
    if name is not None:
        raise OptionError(f"the exported file {weights!r} already defines the model; omit --model")
    if use_torch:
        raise OptionError(
            f"PyTorch cannot run the exported file {weights!r}; omit --torch, or use the weights file that it was "
            "exported from"
        )
    return True


def check_torch() -> None:
    """Check that PyTorch is installed, as --torch requires.

    Raises:
        MissingExtraError: PyTorch is not installed.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("--torch needs PyTorch, which is not installed; omit it, or install torch")


def _open(name: str | None, weights: str | None, use_torch: bool, **arguments: Any) -> Predictor:
    if check_exported(name, weights, use_torch):
        arguments["runtime"] = default_runtime(registry.default, Path(weights or "")).name
    session = None if use_torch else find_session(registry.session, name, weights, **arguments)
    if session is not None:
        return session
    check_torch()
    from featuretap.workflows.inference.modules import open_module

    return open_module(name, weights, **arguments)
