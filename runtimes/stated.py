"""What an exported file says of its model, as strings: our description, and what goes in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featuretap.models.saving import record_of_model
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.signature import DEVICE, DTYPE, KEY
from featuretap.weights.metadata import metadata_of

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["stated"]


def stated(registry: Registry, model: Exportable) -> dict[str, str]:
    """Return the metadata of an exported file.

    Raises:
        WeightsError: an option's value cannot be written.
    """
    written = metadata_of(record_of_model(registry, model.description))
    # Of safetensors files only.
    del written["format"]
    images = model.images
    return {
        **written,
        KEY: model.signature.text(),
        DEVICE: images.device.type,
        DTYPE: str(images.dtype).removeprefix("torch."),
    }
