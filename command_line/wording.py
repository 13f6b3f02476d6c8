"""Errors in the words of the command line. No torch."""

from __future__ import annotations

__all__ = ["WORDS", "as_typed"]

WORDS = {
    "registry.list_backbones() names them": "`featuretap list` names them",
    "give its path as pretrained=": "give its path as --weights",
    "such as backbone='mobilenet_v3_large'": "such as --backbone mobilenet_v3_large",
}
"""What an error says to somebody who writes Python → what it says to somebody who types a command."""


def as_typed(message: str) -> str:
    """Return an error's message with what to do as it is typed."""
    for written, typed in WORDS.items():
        message = message.replace(written, typed)
    return message
