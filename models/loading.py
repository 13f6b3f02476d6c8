"""Load models from checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.pretrained import WeightsSource
from featuretap.models.building import build_model
from featuretap.models.built import Built
from featuretap.models.multi_head import build_multi_head_model
from featuretap.specs import BackboneSpec
from featuretap.support.errors import OptionError
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.requests import resolve_checkpoint, resolve_multi_head_checkpoint
from featuretap.weights.several_heads import has_several_heads, select_part
from featuretap.weights.torch_tensors import check_finite


def load_model(
    catalogue: Catalogue,
    path: str | os.PathLike[str],
    name: str | BackboneSpec | None,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    finite: bool,
) -> Built:
    """Build the model of a checkpoint and load its weights. See `Registry.load`.

    Args:
        catalogue: the registry's catalogue.
        path: path or address of the checkpoint.
        name: backbone to use instead of the file's.
        arguments: arguments of `build` that replace the file's, unless they are None.
        options: options of the backbone and head that replace the file's.
        finite: refuse NaN and infinity.

    Returns:
        The model.

    Raises:
        OptionError: `pretrained` was passed.
        WeightsError, FeaturetapError: see `Registry.load`.
    """
    if "pretrained" in options:
        raise OptionError(f"registry.load reads the weights of {str(path)!r}; remove pretrained")
    checkpoint = open_checkpoint(WeightsSource(path=path), catalogue)
    if finite:
        check_finite(checkpoint)
    if has_several_heads(checkpoint):
        arguments = {key: value for key, value in arguments.items() if value is not None}
        if not arguments and name is None:
            several = resolve_multi_head_checkpoint(checkpoint, catalogue, options)
            return build_multi_head_model(several, catalogue, checkpoint, keep_dtype=True)
        checkpoint = select_part(checkpoint, arguments)
    request = resolve_checkpoint(checkpoint, catalogue, name, arguments, options)
    return build_model(request, catalogue, checkpoint, keep_dtype=True)
