"""How an extractor is opened: with a session where that is possible, and with PyTorch otherwise."""

from typing import Any

from featuretap.workflows.extraction.computing import Extractor
from featuretap.workflows.extraction.sessions import open_session
from featuretap.workflows.inference.opening import check_exported, check_torch, find_session


def open_extractor(
    model: str | None,
    weights: str | None,
    taps: tuple[str, ...],
    size: tuple[int, int] | None = None,
    use_torch: bool = False,
) -> Extractor:
    """Return a backbone that computes features.

    Args:
        model: name of the backbone; None for that of the file, or the default.
        weights: a tag, a file, "none" for random ones, or None or "default" for the catalogue's default.
        taps: addresses of the maps.
        size: (height, width) in pixels that images are resized to; None to resize and crop them as the weights' were.
        use_torch: whether PyTorch computes, whatever a session could do.
    """
    check_exported(model, weights, use_torch)
    settings: dict[str, Any] = {"taps": taps, "size": size}
    extractor = None if use_torch else find_session(open_session, model, weights, **settings)
    if extractor is not None:
        return extractor
    check_torch()
    from featuretap.workflows.extraction.modules import open_module

    return open_module(model, weights, **settings)
