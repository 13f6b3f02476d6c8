"""Open an extractor: a session if possible, otherwise PyTorch."""

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
    """Open a backbone for feature extraction.

    Args:
        model: name of the backbone; None for the file's backbone or the default.
        weights: a tag, a file, "none" for random weights, or None or "default" for the catalogue's default.
        taps: tap addresses.
        size: (height, width) in pixels to resize images to; None to resize and crop them as the checkpoint's
            preprocessing does.
        use_torch: whether to use PyTorch even if a session could run the model.

    Returns:
        The extractor.
    """
    check_exported(model, weights, use_torch)
    settings: dict[str, Any] = {"taps": taps, "size": size}
    extractor = None if use_torch else find_session(open_session, model, weights, **settings)
    if extractor is not None:
        return extractor
    check_torch()
    from featuretap.workflows.extraction.modules import open_module

    return open_module(model, weights, **settings)
