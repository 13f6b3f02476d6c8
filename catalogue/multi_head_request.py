"""Arguments of `build` with several heads → a resolved request: one of the backbone, and one for each head."""

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
"""Names of heads, or a mapping from names of one's own to names of heads."""

IMAGE_OPTIONS = ("size", "resizing", "min_size", "max_size", "image_mean", "image_std")
"""Options by which a detection head prepares the images that the backbone reads."""

RESERVED = frozenset(
    # Fifty lines as a list.
    (  # noqa: SIM905
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
"""Attributes of `torch.nn.ModuleDict`, which no head can be named like."""


@dataclass(frozen=True)
class MultiHeadRequest:
    """A resolved request of a backbone with several heads.

    Args:
        backbone: of the bare backbone with the taps of all heads.
        heads: name → request of the model that the head and the backbone form.
    """

    backbone: BuildRequest
    heads: Mapping[str, BuildRequest]

    @property
    def spec(self) -> MultiHeadSpec:
        """The backbone's spec with those of the heads."""
        return MultiHeadSpec(
            self.backbone.backbone, {name: model_spec(request) for name, request in self.heads.items()}
        )

    @property
    def label(self) -> str:
        """Name and options of the backbone, for messages."""
        return self.backbone.label


def model_spec(request: BuildRequest) -> ModelSpec:
    """Return the spec of a request of a model with one head."""
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
        catalogue: of the registry.
        name: of the backbone.
        heads: their names, or own names → their names.
        pretrained: as for `build`.
        **options: of the backbone, and for each head, under its name, a mapping with those of the head, with
            `num_classes` and with `taps`.

    Raises:
        HeadError: a head's name cannot be that of a module or of an option, or two heads contradict each other.
        FeaturetapError: as `Registry.build` for one head.
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
    """Return own name → name of the head.

    Args:
        heads: as `build` takes them.
        defaults: what `options_of` returns for the backbone.

    Raises:
        HeadError: no head, one twice, or a name that no head can have.
    """
    if not isinstance(heads, Mapping | Sequence):
        raise HeadError(f"head={heads!r} should be the name of a head, several, or a mapping from own names to them")
    named = dict(heads) if isinstance(heads, Mapping) else {head: head for head in heads}
    if not named or len(named) < len(heads):
        problem = "names no head" if not named else "names a head twice"
        raise HeadError(f"head={heads!r} {problem}; give each a name of its own: head={{'road': 'lraspp', ...}}")
    taken = {*RESERVED, *ARGUMENTS, *defaults}
    for label in named:
        if not isinstance(label, str) or not label.isidentifier() or label[0] == "_" or label in taken:
            raise HeadError(
                f"a head cannot be called {label!r}; choose an identifier that is no argument or option of build, and "
                "no attribute of PyTorch's modules"
            )
    return named


def describe_heads(backbone: Description, heads: Mapping[str, Description]) -> Description:
    """Return the description of a backbone with several heads.

    The preprocessing is that of the head that asks most of it: a detector takes images as they are and prepares them
    for all heads, a segmenter takes them uncropped.
    """
    specs = {name: described.spec for name, described in heads.items()}
    ranks = {"raw": 0, "whole": 1, "cropped": 2}
    first = min(specs, key=lambda name: ranks[specs[name].head.images])  # type: ignore[union-attr]
    return replace(backbone, heads=dict(heads), preprocessing=heads[first].preprocessing)


def check_heads(models: Mapping[str, ModelSpec]) -> None:
    """Refuse detectors that prepare their images in different ways, of which a backbone can read one only.

    Args:
        models: name of a head → spec of the model that it and the backbone form.

    Raises:
        HeadError: an option that prepares images differs.
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
                    f"heads {first!r} and {label!r} prepare images with {option}={values[0]!r} and "
                    f"{option}={values[1]!r}; give both the same, or build two models"
                )


def _check_head_options(label: str, head: HeadSpec, values: Any, defaults: Mapping[str, Any]) -> None:
    """Refuse options of a head that are no mapping, or that are the backbone's."""
    if not isinstance(values, Mapping):
        raise OptionError(
            f"{label}={values!r} should be a mapping with the options of the head {head.name!r}",
            hint=Hint("give them under its name:", f"{label}={{'num_classes': 21}}"),
        )
    for option in values:
        if option in defaults or option in ("pretrained", "features_only", "head", "name"):
            raise OptionError(
                f"{option} of {label!r} is shared by all heads",
                hint=Hint("give it beside them:", f"{option}={values[option]!r}"),
            )


def _check_shared_options(
    specs: Mapping[str, HeadSpec], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Refuse options outside the heads' mappings that are a head's, or that nothing takes."""
    for option, value in options.items():
        owners = [label for label, head in specs.items() if option in (*head.options, "num_classes", "taps")]
        if option not in defaults and owners:
            stated = list(value) if isinstance(value, tuple) else value
            raise OptionError(
                f"{option}={value!r} is an option of one head, and there are several",
                hint=Hint("give it under the head's name:", f"{owners[0]}={{{option!r}: {stated!r}}}"),
            )
        if option not in defaults and isinstance(value, Mapping):
            hint = did_you_mean(option, specs) or ";"
            raise UnknownHeadError(f"no head is called {option!r}{hint} the heads are {', '.join(specs)}")


def _backbone_options_of_heads(
    specs: Mapping[str, HeadSpec], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of the backbone that heads set, unless the caller or the backbone's spec does."""
    options: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for label, head in specs.items():
        for option, value in head.backbone_options.items():
            is_default = option in defaults and (option not in OPTIONS or defaults[option] == OPTIONS[option].default)
            if not is_default or option in given:
                continue
            if options.setdefault(option, value) != value:
                raise HeadError(
                    f"heads {owners[option]!r} and {label!r} need {option}={options[option]!r} and {option}={value!r}",
                    hint=Hint("choose one for both, such as", f"{option}={value!r}"),
                )
            owners.setdefault(option, label)
    return options
