"""Save models as checkpoints, and upload them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from featuretap.catalogue.addresses import HUB, is_valid_address, split_hub_address
from featuretap.catalogue.catalogue import Catalogue
from featuretap.models.built import Built, is_fused, unwrap, unwrap_parts
from featuretap.models.multi_head import MultiHeadModel
from featuretap.models.several_heads import select_head
from featuretap.specs.description import format_options
from featuretap.specs.layout import NATIVE
from featuretap.support.errors import Hint, OptionError, WeightsError
from featuretap.weights import hub
from featuretap.weights.downloads import offline
from featuretap.weights.expected_tensors import find_difference, head_tensors
from featuretap.weights.folding import eps_of
from featuretap.weights.recording import is_built_by_name, make_portable
from featuretap.weights.writing import (
    ModelWeights,
    check_target,
    shapes_of,
    write_checkpoint,
    write_multi_head_checkpoint,
)


def save_model(catalogue: Catalogue, model: nn.Module, path: Path, layout: str) -> Path:
    """Save a model. See `Registry.save`.

    Args:
        catalogue: the registry's catalogue.
        model: a built model, which may be wrapped.
        path: path of the file or folder.
        layout: name of the layout.

    Returns:
        The path of the file.

    Raises:
        OptionError: featuretap did not build the model, or the path has an unsupported suffix.
        WeightsError: the model was changed, the layout cannot represent it, or the file cannot be written.
    """
    check_target(path)
    inner = unwrap_parts(unwrap(model, "registry.save writes"))
    if not isinstance(inner, MultiHeadModel):
        return write_checkpoint(_weights_of(catalogue, inner), path, layout)
    if layout != NATIVE:
        raise WeightsError(
            f"cannot save a model with several heads in the layout {layout!r}, which supports one",
            hint=Hint(
                "save one head:", f"registry.save(registry.select_head(model, {next(iter(inner.heads))!r}), ...)"
            ),
        )
    heads = {name: _weights_of(catalogue, select_head(inner, name)) for name in inner.heads}
    return write_multi_head_checkpoint(_weights_of(catalogue, inner.backbone), heads, path)


def _weights_of(catalogue: Catalogue, model: Built) -> ModelWeights:
    """Return the weights of a model with at most one head, as in a file.

    Args:
        catalogue: the registry's catalogue.
        model: a model without wrappers.

    Returns:
        The weights and the description.

    Raises:
        OptionError: the description does not have a spec.
        WeightsError: the model was changed after it was built.
    """
    description = model.description
    label = format_options(description.name, description.options)
    if is_fused(model):
        raise WeightsError(
            f"cannot save {label}, which is fused and has no batch norms any more; save the original model"
        )
    spec = description.spec
    if spec is None or description.backbone is None:
        raise OptionError("the model's description has no spec; change descriptions with dataclasses.replace only")
    prefix = "backbone." if description.head else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    eps = {path.removeprefix(prefix): value for path, value in eps_of(model).items()}
    by_name = is_built_by_name(catalogue, description)
    difference = find_difference(shapes_of(tensors), description.backbone, head_tensors(spec))
    if difference:
        raise WeightsError(
            f"cannot save {label}, which was changed after it was built: {difference}; build a model with this change "
            "(such as num_classes=), and copy the state dict into it"
        )
    portable = make_portable(catalogue, description) if by_name else description
    return ModelWeights(tensors, eps, portable, spec, by_name)


def push_model(catalogue: Catalogue, model: nn.Module, repository: str, layout: str, private: bool) -> str:
    """Upload a model to the Hugging Face Hub. See `Registry.push`.

    Args:
        catalogue: the registry's catalogue.
        model: a built model, which may be wrapped.
        repository: "owner/name".
        layout: name of the layout.
        private: make a new repository private.

    Returns:
        The URL of the repository.

    Raises:
        OptionError: the repository's name is invalid, or as for `save_model`.
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: the hub refuses the upload or cannot be reached, FEATURETAP_OFFLINE is set, or as for
            `save_model`.
    """
    address = f"{HUB}{repository}"
    if not is_valid_address(address) or split_hub_address(address) != (repository, None, ""):
        raise OptionError(f"{repository!r} is not the name of a Hugging Face repository; write 'owner/name'")
    if offline():
        raise WeightsError(f"cannot push to {repository!r}: FEATURETAP_OFFLINE is set; unset it")
    with TemporaryDirectory(prefix="featuretap-") as folder:
        save_model(catalogue, model, Path(folder), layout)
        return hub.upload(Path(folder), repository, private=private)
