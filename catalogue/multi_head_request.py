"""Resolve the arguments of `build` with several heads into one request per head, and one for the backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import BuildRequest, resolve_request
from featuretap.specs import BackboneSpec, HeadSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.description import Description
from featuretap.specs.options import OPTIONS, options_of
from featuretap.specs.validation import ARGUMENTS
from featuretap.support.errors import HeadError, Hint, OptionError, UnknownHeadError, did_you_mean

Heads: TypeAlias = Sequence[str] | Mapping[str, str]
"""Names of heads, or a mapping from custom names to names of heads."""

IMAGE_OPTIONS = ("size", "resizing", "min_size", "max_size", "image_mean", "image_std")
"""Options of detection heads that determine the images that the backbone reads."""

RESERVED = frozenset(
    (  # noqa: SIM905 - as a list, it would take fifty lines
        "T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double "
        "dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu "
        "items keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters "
        "parameters pop register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
        "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook "
        "register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook "
        "register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty "
        "train training type update values xpu zero_grad"
    ).split()
)
"""Attributes of `torch.nn.ModuleDict`, which cannot be the names of heads."""


@dataclass(frozen=True)
class MultiHeadRequest:
    """A resolved request for a backbone with several heads.

    Args:
        backbone: request for the bare backbone with the taps of all heads.
        heads: mapping from head name to the request for the model of backbone and head.
    """

    backbone: BuildRequest
    heads: Mapping[str, BuildRequest]

    @property
    def spec(self) -> MultiHeadSpec:
        """The spec of the backbone with its heads."""
        return MultiHeadSpec(
            self.backbone.backbone, {name: model_spec(request) for name, request in self.heads.items()}
        )

    @property
    def label(self) -> str:
        """Name and options of the backbone, for messages."""
        return self.backbone.label


def model_spec(request: BuildRequest) -> ModelSpec:
    """Return the spec of a `request` for a model with one head."""
    assert isinstance(request.spec, ModelSpec)
    return request.spec


def resolve_multi_head_request(
    catalogue: Catalogue,
    name: str | BackboneSpec,
    heads: Heads,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    **options: Any,
) -> MultiHeadRequest:
    """Resolve the arguments of `Registry.build` with several heads.

    Args:
        catalogue: the catalogue of the registry.
        name: name of the backbone, or its spec.
        heads: names of heads, or a mapping from custom names to names of heads.
        pretrained: as for `Registry.build`.
        **options: options of the backbone; and, under the name of each head, a mapping with its options, `num_classes`
            and `taps`.

    Returns:
        The resolved request.

    Raises:
        HeadError: the name of a head is reserved, or two heads contradict each other.
        FeaturetapError: any error of `Registry.build` with one head.
    """
    for argument in ("taps", "num_classes"):
        if options.get(argument) is None:
            options.pop(argument, None)
    if options.pop("features_only", False):
        raise HeadError("features_only=True returns the bare backbone, which has no heads; leave one of the two out")
    provided = catalogue.backbone(name)
    defaults = options_of(provided)
    specs = {label: catalogue.head(kind) for label, kind in name_heads(heads, defaults).items()}
    of_heads = {label: options.pop(label, {}) for label in specs}
    for label, values in of_heads.items():
        _check_head_options(label, specs[label], values, defaults)
    _check_shared_options(specs, options, defaults)
    shared = {**_backbone_options_of_heads(specs, defaults, options), **options}
    requests = {
        label: resolve_request(catalogue, name, pretrained=pretrained, head=head.name, **shared, **of_heads[label])
        for label, head in specs.items()
    }
    check_heads({label: model_spec(request) for label, request in requests.items()})
    read = {address for request in requests.values() for address in request.backbone.taps}
    addresses = next(iter(requests.values())).backbone.addresses
    taps = tuple(address for address in addresses if address in read)
    backbone = resolve_request(catalogue, name, pretrained=pretrained, features_only=True, taps=taps, **shared)
    return MultiHeadRequest(backbone, requests)


def name_heads(heads: Heads, defaults: Mapping[str, Any]) -> dict[str, str]:
    """Return a mapping from the name of each head in the model to its name in the registry.

    Args:
        heads: the argument `head` of `Registry.build`.
        defaults: options of the backbone, as returned by `options_of`.

    Returns:
        A mapping from custom name to name of the head.

    Raises:
        HeadError: there is no head, a head is repeated, or a name is reserved.
    """
    if not isinstance(heads, Mapping | Sequence):
        raise HeadError(f"head must be a name, several names, or a mapping from custom names to names; got {heads!r}")
    named = dict(heads) if isinstance(heads, Mapping) else {head: head for head in heads}
    if not named or len(named) < len(heads):
        problem = "is empty; give at least one head" if not named else "repeats a head; give each a custom name"
        raise HeadError(f"head={heads!r} {problem}: head={{'road': 'lraspp', ...}}")
    taken = {*RESERVED, *ARGUMENTS, *defaults}
    for label in named:
        if not isinstance(label, str) or not label.isidentifier() or label[0] == "_" or label in taken:
            raise HeadError(
                f"{label!r} cannot be the name of a head; choose an identifier that is neither an argument nor "
                "an option of build, and not an attribute of torch.nn.ModuleDict"
            )
    return named


def describe_heads(backbone: Description, heads: Mapping[str, Description]) -> Description:
    """Return the description of a `backbone` with several `heads`.

    A detector's preprocessing takes precedence: it takes unmodified images and preprocesses them for all heads. The
    next is a segmenter's, which does not crop images.
    """
    specs = {name: described.spec for name, described in heads.items()}
    ranks = {"raw": 0, "whole": 1, "cropped": 2}
    first = min(specs, key=lambda name: ranks[specs[name].head.images])  # type: ignore[union-attr]
    return replace(backbone, heads=dict(heads), preprocessing=heads[first].preprocessing)


def check_heads(models: Mapping[str, ModelSpec]) -> None:
    """Check that all detectors preprocess images in the same way, since they share one backbone.

    Args:
        models: mapping from head name to the spec of the model of backbone and head.

    Raises:
        HeadError: an option that determines the images differs.
    """
    first = ""
    for label, model in models.items():
        if model.head.images != "raw":
            continue
        first = first or label
        for option in IMAGE_OPTIONS:
            values = models[first].head_options.get(option), model.head_options.get(option)
            if values[0] != values[1]:
                raise HeadError(
                    f"heads {first!r} and {label!r} preprocess images with {option}={values[0]!r} and "
                    f"{option}={values[1]!r}; set one value for both, or build two models"
                )


def _check_head_options(label: str, head: HeadSpec, values: Any, defaults: Mapping[str, Any]) -> None:
    """Check that the options of a head are a mapping without options of the backbone."""
    if not isinstance(values, Mapping):
        raise OptionError(
            f"{label}={values!r} is not a mapping of options for the head {head.name!r}",
            hint=Hint("pass a dict:", f"{label}={{'num_classes': 21}}"),
        )
    for option in values:
        if option in defaults or option in ("pretrained", "features_only", "head", "name"):
            raise OptionError(
                f"{option} of {label!r} is shared by all heads",
                hint=Hint("pass it outside the options of the heads:", f"{option}={values[option]!r}"),
            )


def _check_shared_options(
    specs: Mapping[str, HeadSpec], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Check that options outside the heads' mappings belong to the backbone."""
    for option, value in options.items():
        owners = [label for label, head in specs.items() if option in (*head.options, "num_classes", "taps")]
        if option not in defaults and owners:
            stated = list(value) if isinstance(value, tuple) else value
            raise OptionError(
                f"{option}={value!r} is an option of one head, but the model has several",
                hint=Hint("pass it under the head's name:", f"{owners[0]}={{{option!r}: {stated!r}}}"),
            )
        if option not in defaults and isinstance(value, Mapping):
            hint = did_you_mean(option, specs) or ";"
            raise UnknownHeadError(f"no head named {option!r}{hint} heads: {', '.join(specs)}")


def _backbone_options_of_heads(
    specs: Mapping[str, HeadSpec], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the backbone options that heads set, unless the caller or the backbone's spec sets them."""
    options: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for label, head in specs.items():
        for option, value in head.backbone_options.items():
            is_default = option in defaults and (option not in OPTIONS or defaults[option] == OPTIONS[option].default)
            if not is_default or option in given:
                continue
            if options.setdefault(option, value) != value:
                raise HeadError(
                    f"heads {owners[option]!r} and {label!r} require {option}={options[option]!r} and "
                    f"{option}={value!r}",
                    hint=Hint("set one value for both:", f"{option}={value!r}"),
                )
            owners.setdefault(option, label)
    return options
