"""The padding that weights were trained with, which their tensors do not show."""

from __future__ import annotations

import logging
from dataclasses import replace

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import BuildRequest, resolve_request
from featuretap.specs import BackboneSpec
from featuretap.specs.description import Description
from featuretap.specs.layers import PADDINGS, SAME, SYMMETRIC
from featuretap.specs.options import options_of
from featuretap.specs.variants import with_padding
from featuretap.support.errors import WeightsError
from featuretap.weights.files import FILE
from featuretap.weights.layouts import layout_for
from featuretap.weights.metadata import Record
from featuretap.weights.reading import Checkpoint
from featuretap.weights.timm_config import padding_by_name

logger = logging.getLogger("featuretap")


def stated_padding(checkpoint: Checkpoint, catalogue: Catalogue) -> str | None:
    """Return the padding according to a record, the catalogue, a `config.json` or the file's name.

    Args:
        checkpoint: the checkpoint.
        catalogue: the registry's catalogue.

    Returns:
        The padding, or None if it is not stated.
    """
    entry, path = checkpoint.entry, checkpoint.path
    if checkpoint.record:
        described = checkpoint.record.description
        return _padding_of(described, catalogue) if checkpoint.record.by_name else described.options.get("padding")
    if entry:
        return _padding_of(Description(entry.backbone, (), entry.options), catalogue)
    return checkpoint.config.padding or padding_by_name(path.parent.name if path.name == FILE else path.name)


def set_padding(record: Record, catalogue: Catalogue, stated: str | None) -> Record:
    """Set the padding of a record for tensors in another library's layout to the padding of the library's network.

    Args:
        record: record of identified tensors.
        catalogue: the registry's catalogue.
        stated: the known padding; None for the backbone's default, if the library has this network.

    Returns:
        The record with this padding.
    """
    described = record.description
    taken = options_of(catalogue.backbone(described.name))
    options = {name: value for name, value in described.options.items() if name in taken}
    spec = resolve_request(catalogue, described.name, features_only=True, **options).backbone
    available = _architectures(spec, record.layout)
    usual = spec.padding if spec.padding in available else next(iter(available), spec.padding)
    padding = stated if stated in available else usual
    if padding == spec.padding:
        return record
    layout = layout_for(with_padding(spec, padding), record.layout)
    description = replace(described, options={**described.options, "padding": padding})
    return replace(record, description=description, norm_eps={**record.norm_eps, **layout.norm_eps_by_part})


def check_padding(checkpoint: Checkpoint, request: BuildRequest, layout: str, catalogue: Catalogue) -> None:
    """Check that a model uses the padding of its weights, unless the caller sets the padding.

    Args:
        checkpoint: the weights.
        request: request for the model.
        layout: name of the weights' layout.
        catalogue: the catalogue that resolved the request.

    Raises:
        WeightsError: the weights were trained with another padding.
    """
    own = request.backbone.padding
    if not request.backbone.stages:
        return
    trained = stated_padding(checkpoint, catalogue)
    if "padding" in request.description.options:
        if trained not in (None, own):
            logger.warning("%s was trained with padding=%r, but is used with padding=%r", checkpoint.path, trained, own)
        return
    if trained not in (None, own):
        raise WeightsError(
            f"{checkpoint.path} was trained with padding={trained!r}, but {request.label} has padding={own!r}; pass "
            f"padding={trained!r}, or padding={own!r} to use the weights anyway"
        )
    available = _architectures(request.backbone, layout)
    if trained is None and own == SYMMETRIC and len(set(available.values())) > 1:
        logger.warning(
            "%s: the tensors fit %s's %r and %r, which pad differently; assuming the first, padding=%r selects the "
            "second",
            checkpoint.path,
            layout,
            available[SYMMETRIC],
            available[SAME],
            SAME,
        )


def _padding_of(description: Description, catalogue: Catalogue) -> str | None:
    """Return the padding of a backbone with these options, or None if it has a factory."""
    defaults = options_of(catalogue.backbone(description.name))
    padding: str | None = {**defaults, **description.options}.get("padding")
    return padding


def _architectures(spec: BackboneSpec, layout: str) -> dict[str, str]:
    """Return padding → name of a library's network with this padding."""
    if not spec.stages or layout not in spec.layouts:
        return {}
    named = {padding: layout_for(with_padding(spec, padding), layout).architecture for padding in PADDINGS}
    return {padding: name for padding, name in named.items() if name}
