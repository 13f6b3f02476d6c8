"""Every code block of the pages that install a plugin works."""

import pytest
from support.pages import INSTALLING
from support.reader import Reader, follow_page


@pytest.mark.parametrize("name", INSTALLING)
def test_every_block_of_a_page_that_installs_a_plugin_works(name: str, installing_reader: Reader) -> None:
    follow_page(name, installing_reader)
