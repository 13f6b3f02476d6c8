"""Docstrings of the modules that can only be imported where ONNX, ONNX Runtime and OpenVINO are installed."""

import pytest
from support.package import OF_RUNTIMES, check_documented


@pytest.mark.parametrize("name", OF_RUNTIMES)
def test_everything_public_in_the_runtimes_is_documented(name: str) -> None:
    check_documented(name)
