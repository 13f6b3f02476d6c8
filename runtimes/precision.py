"""Check which runtimes and processors support a precision."""

from __future__ import annotations

from featuretap.catalogue.catalogue import Catalogue
from featuretap.specs import RuntimeSpec
from featuretap.specs.runtime import BF16, FLOAT32
from featuretap.support.errors import OptionError
from featuretap.support.processor import BF16_UNITS, bf16_units, processor_name


def check_runtime_precision(catalogue: Catalogue, runtime: RuntimeSpec, precision: str) -> None:
    """Check that a runtime supports a precision.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime.
        precision: the requested precision.

    Raises:
        OptionError: the runtime does not support the precision. The message lists runtimes that do.
    """
    if precision not in runtime.precisions:
        able = " or ".join(repr(other.name) for other in catalogue.runtimes if precision in other.precisions)
        raise OptionError(
            f"the runtime {runtime.name!r} only supports {' and '.join(runtime.precisions)}; use {able} for "
            f"precision={precision!r}"
        )


def check_processor(precision: str) -> None:
    """Check that the processor supports a precision in hardware. Emulation would be slower than float32.

    Args:
        precision: the requested precision.

    Raises:
        OptionError: the processor does not support it, or the system does not list its features.
    """
    if precision == BF16 and not bf16_units():
        raise OptionError(
            f"precision={precision!r} needs a processor with bfloat16 support, but /proc/cpuinfo lists none of "
            f"{', '.join(BF16_UNITS)} for {processor_name()}; use precision={FLOAT32!r}"
        )


def precision_option(precision: str) -> dict[str, str]:
    """Return the keyword argument for a runtime's functions. Runtimes that only support float32 do not take one."""
    return {} if precision == FLOAT32 else {"precision": precision}
