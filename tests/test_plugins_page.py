"""docs/plugins.md: every command is run, and every file is what the page says, in an environment of its own."""

import re
from pathlib import Path

import pytest
from conftest import ROOT
from distributions import Environment

PAGE = (ROOT / "docs" / "plugins.md").read_text()
PATH = re.compile(r"`(featuretap-tinynet/[\w./-]+)`")


def steps() -> list[tuple[str, str, str, str]]:
    """Return language, text, the words before, and what is printed, of every block of the page."""
    found = []
    end = 0
    for block in re.finditer(r"```(\w+)\n(.*?)```\n", PAGE, re.DOTALL):
        if block[1] != "text":
            printed = re.match(r"\n```text\n(.*?)```\n", PAGE[block.end() :], re.DOTALL)
            found.append((block[1], block[2], PAGE[end : block.start()], printed[1] if printed else ""))
        end = block.end()
    return found


def plain(text: str) -> list[str]:
    """Return the lines without what cannot be seen."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("page") / "environment")


def test_following_the_page_works_to_the_letter(environment: Environment, tmp_path: Path) -> None:
    compared = written = commands = 0
    for language, text, before, printed in steps():
        named = PATH.findall(before)
        if language == "bash":
            ran = environment.shell(text, tmp_path)
            assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
            assert not printed or plain(ran.stdout) == plain(printed), text
            commands += 1
        elif named:
            path = tmp_path / named[-1]
            if re.search(r"(Replace|Write)\s+`" + re.escape(named[-1]), before):
                path.write_text(text)
                written += 1
            else:
                assert path.read_text() == text
                compared += 1
        elif language == "python":
            ran = environment.run("-c", text)
            assert (ran.returncode, ran.stdout) == (0, printed), f"{text}\n{ran.stdout}\n{ran.stderr}"
    assert (compared, written, commands) == (5, 5, 9)
