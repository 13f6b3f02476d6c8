"""Docstrings of the modules that only import where ONNX, ONNX Runtime and OpenVINO are installed."""

import pytest
from support.package import OF_RUNTIMES, check_documented, check_examples


@pytest.mark.parametrize("name", OF_RUNTIMES)
def test_examples_in_docstrings_of_runtimes_print_what_they_say(name: str) -> None:
    check_examples(name)


@pytest.mark.parametrize("name", OF_RUNTIMES)
def test_everything_public_in_the_runtimes_is_documented(name: str) -> None:
    check_documented(name)
