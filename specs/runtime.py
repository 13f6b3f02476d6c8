"""A runtime as data: what it is called, what has to be installed for it, and which files it opens."""

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
"""Precisions of `registry.compile`; float32 is the model's own in runtimes that also take models of other dtypes."""

AUTO = "auto"
"""In place of a runtime's name: the fastest."""

RESERVED = (AUTO, "eager")
"""Names of no runtime: `featuretap bench` calls the model itself "eager"."""

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
        name: as `registry.compile` is asked for it.
        factory: import string of `factory(exportable, *, threads) -> run`, where `exportable` is a
            `featuretap.runtimes.exportable.Exportable`, `threads` a number or None for torch's, and `run` maps images
            (N, C, H, W) to a sequence of tensors in the order of `exportable.signature.outputs`. It computes in
            `exportable.precision`, one of `precisions`.
        session: import string of `open_session(model, *, threads) -> Opened` (`featuretap.runtimes.sessions`), where
            `model` is an ONNX graph as bytes or the path of a file in `opens`, and `threads` a number; it imports no
            torch. It gets `precision` as a further argument where that is not "float32". Empty for a runtime that needs
            torch.
        modules: top-level modules that have to be installed.
        requires: what brings them, as pip spells it: "featuretap[openvino]".
        opens: ending of a file (".onnx") → import string of `open(path, *, threads) -> (metadata, run)`, where
            `metadata` are the strings that the file holds of its model.
        description: what it is, in a line.
        precisions: in which the runtime computes, "float32" among them; "bf16" is the other one.
        quick: whether it compiles a model within seconds, so that `runtime="auto"` tries it.

    Raises:
        SpecError: the name is no name or a reserved one ("auto", "eager"), or a field is of another kind.
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
        """Check that the modules of the runtime are installed, without importing any.

        Raises:
            MissingExtraError: one of them is not.
        """
        check_modules(f"the runtime {self.name!r}", self.modules, self.requires)


def check_precision(precision: Any) -> None:
    """Check a precision, whatever the runtime.

    Args:
        precision: the name of one, such as "float32".

    Raises:
        OptionError: it is unknown.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be {' or '.join(map(repr, PRECISIONS))}; got {precision!r}")
