"""Every code block works, except on the pages of test_exporting_pages and test_installing_pages."""

import pytest
from support.pages import EXPORTING, INSTALLING, NAMES, NOT_FOLLOWED
from support.reader import Reader, follow_page

FOLLOWED = [name for name in NAMES if name not in {*EXPORTING, *INSTALLING, *NOT_FOLLOWED}]


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_block_of_a_page_works(name: str, reader: Reader) -> None:
    follow_page(name, reader)
