"""One class per failure. All derive from `FeaturetapError`, so that applications can catch the library's own failures.

Messages are lower case: what was asked, what is wrong, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "CatalogueError",
    "DataError",
    "ExportError",
    "FeaturetapError",
    "HeadError",
    "Hint",
    "ImageError",
    "MissingExtraError",
    "NodesError",
    "OptionError",
    "PluginError",
    "SpecError",
    "TapError",
    "TrainingError",
    "UnknownBackboneError",
    "UnknownHeadError",
    "UnknownOptionError",
    "UnknownRuntimeError",
    "UnknownTapError",
    "UnknownWeightsError",
    "WeightsError",
    "did_you_mean",
]


@dataclass(frozen=True)
class Hint:
    """What to do about an error.

    Args:
        advice: the sentence, without the reference that ends it.
        reference: the argument or the call it ends with, as Python writes it: "pretrained=". A front end puts its own
            in place of it, such as the command line `--weights`.
    """

    advice: str
    reference: str = ""

    def __str__(self) -> str:
        return f"{self.advice} {self.reference}".strip()


LONGEST = 1000
"""Characters of a message. Values and other libraries' messages, which are a part of some, can be of any length."""


def _shorten(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - room // 3 - 3]} … {text[-(room // 3) :]}"


class FeaturetapError(Exception):
    """Base of every error that featuretap raises on purpose.

    Args:
        problem: what was asked, and what is wrong.
        hint: what to do about it; the message ends with it. The middle of both is left out where the message would be
            longer than `LONGEST`.
    """

    def __init__(self, problem: str = "", *, hint: Hint | None = None) -> None:
        # Either part may hold a path of any length.
        advice = _shorten(f"; {hint}", LONGEST * 2 // 3) if hint else ""
        problem = _shorten(problem, LONGEST - len(advice))
        super().__init__(problem + advice)
        self.problem = problem
        self.hint = hint


class UnknownBackboneError(FeaturetapError, LookupError):
    """No backbone has this name, or more than one has."""


class UnknownHeadError(FeaturetapError, LookupError):
    """No head has this name, or more than one has."""


class UnknownWeightsError(FeaturetapError, LookupError):
    """The backbone has no weights with this tag."""


class UnknownOptionError(FeaturetapError, LookupError):
    """Neither the backbone nor the head takes an option of this name."""


class UnknownTapError(FeaturetapError, LookupError):
    """The architecture has no such tap address."""


class UnknownRuntimeError(FeaturetapError, LookupError):
    """No runtime has this name, or more than one has."""


class OptionError(FeaturetapError, ValueError):
    """An option is known, and its value is not usable."""


class TapError(FeaturetapError, ValueError):
    """A request for taps that cannot be answered, such as an empty or a repeated one."""


class SpecError(FeaturetapError, ValueError):
    """A spec contradicts itself, or a module contradicts its spec."""


class HeadError(FeaturetapError, ValueError):
    """A head and a backbone that do not go together."""


class CatalogueError(FeaturetapError, ValueError):
    """A `registry.toml` or `featuretap.toml` that cannot be used as it is."""


class PluginError(FeaturetapError, RuntimeError):
    """A plugin failed on import, on registration or in a hook."""


class WeightsError(FeaturetapError, RuntimeError):
    """Weights that are missing, malformed, or of another model."""


class ImageError(FeaturetapError, ValueError):
    """An image file that cannot be read as a picture."""


class DataError(FeaturetapError, ValueError):
    """A data set, or a part of one, that cannot be used as it is."""


class TrainingError(FeaturetapError, RuntimeError):
    """A run of training that cannot start, go on, or be resumed."""


class ExportError(FeaturetapError, RuntimeError):
    """A model that cannot be compiled or exported, or an exported file that cannot be used."""


class NodesError(ExportError):
    """A part of a network that has no ONNX nodes; PyTorch may still trace it."""


class MissingExtraError(FeaturetapError, ImportError):
    """Something needs packages that come with an extra of the distribution."""


def did_you_mean(asked: str, known: Iterable[str], canonical: Mapping[str, str] | None = None) -> str:
    """Return `"; did you mean 'x'?"` for the known name nearest to the one asked for, or "" if none is near.

    Args:
        asked: an unknown name.
        known: known names.
        canonical: alias → the name to offer in its place.
    """
    # Only failures need it, and every start of the command line would pay for it.
    from difflib import get_close_matches

    near = get_close_matches(asked, list(known), n=1, cutoff=0.6)
    return f"; did you mean {(canonical or {}).get(near[0], near[0])!r}?" if near else ""
