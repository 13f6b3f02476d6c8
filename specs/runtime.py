"""Runtime specs: the name of a runtime, the packages it requires, and the files it opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featuretap.specs.validation import (
    BOOLEAN,
    IMPORT_STRING,
    NAMED_STRINGS,
    STRING,
    STRINGS,
    Check,
    check_fields,
    check_name,
)
from featuretap.support.errors import OptionError, SpecError
from featuretap.support.extras import check_modules

FLOAT32, BF16 = "float32", "bf16"
PRECISIONS = (FLOAT32, BF16)
"""Precisions of `registry.compile`. "float32" keeps the dtype of the model in runtimes that support other dtypes."""

AUTO = "auto"
"""Value of `runtime=` that selects the fastest runtime."""

RESERVED = (AUTO, "eager")
"""Names that a runtime cannot have. `featuretap bench` uses "eager" for the model in eager PyTorch."""

FIELDS: dict[str, Check] = {
    "factory": IMPORT_STRING,
    "session": IMPORT_STRING,
    "modules": STRINGS,
    "requires": STRING,
    "opens": NAMED_STRINGS,
    "description": STRING,
    "precisions": (
        "a tuple of 'float32' and others of " + ", ".join(map(repr, PRECISIONS)),
        lambda values: STRINGS[1](values) and {FLOAT32} <= {*values} <= {*PRECISIONS},
    ),
    "quick": BOOLEAN,
}


@dataclass(frozen=True)
class RuntimeSpec:
    """A runtime that models can be compiled for.

    Args:
        name: name of the runtime in the registry.
        factory: import string of `factory(exportable, *, threads) -> run`. `exportable` is a
            `featuretap.runtimes.exportable.Exportable`, and `threads` is a number or None for PyTorch's. `run` maps
            images (N, C, H, W) to a sequence of tensors in the order of `exportable.signature.outputs`, and computes in
            `exportable.precision`, which is one of `precisions`.
        modules: top-level modules that must be installed.
        requires: requirement that installs these modules, in pip's syntax: "featuretap[openvino]".
        opens: mapping from file suffix (".onnx") to the import string of `open(path, *, threads) -> (metadata, run)`,
            where `metadata` has the strings that describe the model in the file.
        description: one-line description.
        session: import string of `open_session(model, *, threads) -> Opened` (`featuretap.runtimes.sessions`). It must
            not import torch. `model` is an ONNX graph as bytes or the path of a file in `opens`, and `threads` is a
            number. A precision other than "float32" is passed as the argument `precision`. Empty for a runtime that
            requires torch.
        precisions: precisions that the runtime supports: "float32", and optionally "bf16".
        quick: whether the runtime compiles a model within seconds, so that `runtime="auto"` tries it.

    Raises:
        SpecError: the name is invalid or reserved ("auto", "eager"), or a field is invalid.

    Examples:
        >>> from featuretap.registry.specs import RuntimeSpec
        >>> runtime = RuntimeSpec(
        ...     "tensorrt",
        ...     factory="featuretap_tensorrt.runtime:compile",
        ...     modules=("tensorrt",),
        ...     requires="featuretap-tensorrt",
        ...     description="NVIDIA TensorRT",
        ... )
        >>> runtime.precisions
        ('float32',)
    """

    name: str
    factory: str
    modules: tuple[str, ...] = ()
    requires: str = ""
    opens: Mapping[str, str] = field(default_factory=dict, hash=False)
    description: str = ""
    session: str = ""
    precisions: tuple[str, ...] = (FLOAT32,)
    quick: bool = False

    def __post_init__(self) -> None:
        check_name("runtime", self.name)
        if self.name in RESERVED:
            raise SpecError(f"runtime {self.name!r} has a reserved name; choose another one")
        check_fields(f"runtime {self.name!r}", self, FIELDS)

    def check_installed(self) -> None:
        """Check that the modules of the runtime are installed, without importing them.

        Raises:
            MissingExtraError: a module is not installed.
        """
        check_modules(f"the runtime {self.name!r}", self.modules, self.requires)


def check_precision(precision: Any) -> None:
    """Check that `precision` is the name of a precision, such as "float32".

    Args:
        precision: the value to check.

    Raises:
        OptionError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be {' or '.join(map(repr, PRECISIONS))}; got {precision!r}")
