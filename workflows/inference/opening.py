"""How commands open a model: as a session where that is possible, and with PyTorch otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from featuretap import registry
from featuretap.catalogue.pretrained import is_location
from featuretap.runtimes.exported_files import export_checkpoint, open_backbone_file, usual_runtime
from featuretap.runtimes.sessions import is_exported
from featuretap.support.errors import FeaturetapError, MissingExtraError, OptionError
from featuretap.workflows.inference.predictor import DEFAULT_BACKBONE, PRETRAINED, Predictor, predicting_heads

if TYPE_CHECKING:
    from featuretap.runtimes.formats import Format

Opened = TypeVar("Opened")

GPU = Path("/dev/nvidia0")
"""There where Linux has a GPU that PyTorch can use, which is faster than a session on the CPU."""


def open_predictor(
    name: str | None, weights: str | None, use_torch: bool = False, head: str | None = None
) -> Predictor:
    """Return a trained model that predicts classes.

    Args:
        name: of the backbone; None for that of the file, or the default.
        weights: a tag, a file or its address, or None or "default" for the catalogue's default.
        use_torch: whether PyTorch computes, whatever a session could do.
        head: one of several heads of the file; None for all.

    Raises:
        OptionError: `weights` is "none", or the model predicts no classes, or its classifier is randomly initialised.
    """
    if weights == "none":
        raise OptionError("predictions of random weights mean nothing; name weights, or leave --weights out")
    predictor = _open(name, weights, use_torch, **({"head": head} if head else {}))
    description = predictor.description
    if not predicting_heads(description):
        raise OptionError(
            f"{weights!r} holds no classifier, detector or segmenter of {description.name!r}, and predictions need one"
        )
    if description.random_head:
        raise OptionError(
            f"{weights!r} has no classifier for {description.name!r}, and predictions of random weights mean nothing"
        )
    return predictor


def open_backbone(
    name: str | None, weights: str | None, taps: tuple[str, ...] | None, use_torch: bool = False
) -> Predictor:
    """Return a backbone whose maps are drawn.

    Args:
        name: of the backbone; None for that of the file, or the default.
        weights: as of `open_predictor`, "none" for random ones, and None for those where the catalogue has no default.
        taps: addresses of the maps; None for all levels.
        use_torch: as of `open_predictor`.
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
    """Return a session for a model, or None where only PyTorch can run it, or has a GPU for it.

    Args:
        open_session: is called as `registry.session`.
        name: of the backbone; None for that of the file, or the default.
        weights: as of `open_predictor`, or "none" for random ones.
        **arguments: of `open_session`.

    Raises:
        FeaturetapError: the session cannot be opened, and PyTorch is not installed or does not read the file either.
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
        # With PyTorch, the model is opened once more, or the error is what it has to say of it.
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
    """Write an exported file without PyTorch, and return whether that was possible.

    Args:
        source: name of a backbone, or a weights file or its address.
        weights: as of `open_predictor`, or "none" for random ones, of a name.
        target: path of the file.
        form: its format.
        arguments: of `registry.build` or `registry.load`.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.

    Raises:
        FeaturetapError: it was not, and PyTorch is not installed.
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
    """Return whether weights are an exported file, which a runtime opens, and check that nothing contradicts that.

    Raises:
        OptionError: a name is given too, or PyTorch is to compute.
    """
    if not is_exported(registry.default, weights):
        return False
    if name is not None:
        raise OptionError(f"the exported file {weights!r} states its model; leave --model out")
    if use_torch:
        raise OptionError(
            f"PyTorch does not compute the exported file {weights!r}; leave --torch out, or give the weights file that "
            "it was written from"
        )
    return True


def check_torch() -> None:
    """Check that PyTorch is installed, for a command that was given --torch.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("--torch computes with PyTorch, which is not installed; leave it out, or install torch")


def _open(name: str | None, weights: str | None, use_torch: bool, **arguments: Any) -> Predictor:
    if check_exported(name, weights, use_torch):
        arguments["runtime"] = usual_runtime(registry.default, Path(weights or "")).name
    session = None if use_torch else find_session(registry.session, name, weights, **arguments)
    if session is not None:
        return session
    check_torch()
    from featuretap.workflows.inference.modules import open_module

    return open_module(name, weights, **arguments)
