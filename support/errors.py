"""Error classes. All derive from `FeaturetapError`, so that applications can catch featuretap's own errors.

Messages are in lower case and state what was requested, what is wrong, and what to do.
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
        advice: the advice, without the reference at its end.
        reference: the argument or call at the end of the advice, in Python syntax such as "pretrained=". Front ends
            replace it with their own syntax, such as `--weights` on the command line.
    """

    advice: str
    reference: str = ""

    def __str__(self) -> str:
        return f"{self.advice} {self.reference}".strip()


LONGEST = 1000
"""Maximum length of a message in characters. Values and messages of other libraries may be arbitrarily long."""


def _shorten(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - room // 3 - 3]} … {text[-(room // 3) :]}"


class FeaturetapError(Exception):
    """Base class of all errors that featuretap raises.

    Args:
        problem: what was requested and what is wrong.
        hint: what to do; appended to the message. If the message would exceed `LONGEST`, the middle of both parts is
            omitted.
    """

    def __init__(self, problem: str = "", *, hint: Hint | None = None) -> None:
        # Both parts may contain paths of any length.
        advice = _shorten(f"; {hint}", LONGEST * 2 // 3) if hint else ""
        problem = _shorten(problem, LONGEST - len(advice))
        super().__init__(problem + advice)
        self.problem = problem
        self.hint = hint


class UnknownBackboneError(FeaturetapError, LookupError):
    """The backbone name is unknown or ambiguous."""


class UnknownHeadError(FeaturetapError, LookupError):
    """The head name is unknown or ambiguous."""


class UnknownWeightsError(FeaturetapError, LookupError):
    """The backbone has no weights with this tag."""


class UnknownOptionError(FeaturetapError, LookupError):
    """Neither the backbone nor the head has this option."""


class UnknownTapError(FeaturetapError, LookupError):
    """The architecture has no tap with this address."""


class UnknownRuntimeError(FeaturetapError, LookupError):
    """The runtime name is unknown or ambiguous."""


class OptionError(FeaturetapError, ValueError):
    """An option has an invalid value."""


class TapError(FeaturetapError, ValueError):
    """A request for taps is invalid, such as an empty or repeated one."""


class SpecError(FeaturetapError, ValueError):
    """A spec is inconsistent, or a module does not match its spec."""


class HeadError(FeaturetapError, ValueError):
    """A head and a backbone are incompatible."""


class CatalogueError(FeaturetapError, ValueError):
    """A `registry.toml` or `featuretap.toml` file is invalid."""


class PluginError(FeaturetapError, RuntimeError):
    """A plugin failed on import, on registration or in a hook."""


class WeightsError(FeaturetapError, RuntimeError):
    """Weights are missing, malformed, or belong to another model."""


class ImageError(FeaturetapError, ValueError):
    """An image file cannot be read."""


class DataError(FeaturetapError, ValueError):
    """A data set or a part of it is invalid."""


class TrainingError(FeaturetapError, RuntimeError):
    """A training run cannot start, continue or be resumed."""


class ExportError(FeaturetapError, RuntimeError):
    """A model cannot be compiled or exported, or an exported file cannot be used."""


class NodesError(ExportError):
    """A part of a network has no ONNX nodes. PyTorch may still trace it."""


class MissingExtraError(FeaturetapError, ImportError):
    """A feature needs packages from an optional extra."""


def did_you_mean(asked: str, known: Iterable[str], canonical: Mapping[str, str] | None = None) -> str:
    """Return `"; did you mean 'x'?"` for the known name closest to an unknown one, or "" if none is close.

    Args:
        asked: the unknown name.
        known: known names.
        canonical: alias → name to suggest instead.

    Returns:
        The suggestion.
    """
    # Imported here, since it would slow down every start of the command line.
    from difflib import get_close_matches

    near = get_close_matches(asked, list(known), n=1, cutoff=0.6)
    return f"; did you mean {(canonical or {}).get(near[0], near[0])!r}?" if near else ""
