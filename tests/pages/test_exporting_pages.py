"""Every code block of the pages that export models works."""

import pytest
from support.pages import EXPORTING
from support.reader import Reader, follow_page


@pytest.mark.parametrize("name", EXPORTING)
def test_every_block_of_a_page_that_exports_works(name: str, reader: Reader) -> None:
    follow_page(name, reader)
