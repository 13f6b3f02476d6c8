"""Precisions of compiled models and sessions: which runtimes and processors have them."""

from __future__ import annotations

from featuretap.catalogue.catalogue import Catalogue
from featuretap.specs import RuntimeSpec
from featuretap.specs.runtime import BF16, FLOAT32
from featuretap.support.errors import OptionError
from featuretap.support.processor import BF16_UNITS, bf16_units, processor_name


def check_runtime_precision(catalogue: Catalogue, runtime: RuntimeSpec, precision: str) -> None:
    """Check that a runtime computes in a precision.

    Raises:
        OptionError: it does not; the message names those of the catalogue that do.
    """
    if precision not in runtime.precisions:
        able = " or ".join(repr(other.name) for other in catalogue.runtimes if precision in other.precisions)
        raise OptionError(
            f"the runtime {runtime.name!r} computes in {' and '.join(runtime.precisions)} only; for "
            f"precision={precision!r} take {able}"
        )


def check_processor(precision: str) -> None:
    """Check that the processor has units for a precision, without which it would be emulated, and slower.

    Raises:
        OptionError: it has none, or the system does not list them.
    """
    if precision == BF16 and not bf16_units():
        raise OptionError(
            f"precision={precision!r} needs a processor that multiplies in bfloat16, and /proc/cpuinfo lists none of "
            f"{', '.join(BF16_UNITS)} for {processor_name()}; leave precision={FLOAT32!r}"
        )


def precision_option(precision: str) -> dict[str, str]:
    """Return the argument for functions of runtimes, of which those that compute in float32 only take none."""
    return {} if precision == FLOAT32 else {"precision": precision}
