"""The pages of the repository as text: code blocks, their expected output, and links.

- A code block is fenced and states its language. Its expected output follows directly in a ``text`` block.
- In expected output, ``…`` matches anything within a line, and a line with only ``…`` matches any number of lines.
  Empty lines and trailing spaces are not compared.
- ``<!-- not run: REASON -->`` directly above a block explains why no test runs it.
- ``--8<-- "installation.md:install"`` includes a section of a page of ``docs/``, like pymdownx.snippets.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from support import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")],
    key=lambda path: str(path.relative_to(ROOT)),
)
BUILT = {ROOT / "docs" / "zoo.md", ROOT / "docs" / "command-line.md"}
"""Pages that only the site has, since `make docs` generates them."""

NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

NOT_RUN = {
    "docs/benchmarks.md": 1,
    "docs/export.md": 2,
    "docs/how-to/detector.md": 3,
    "docs/how-to/features-for-my-detector.md": 2,
    "docs/how-to/raspberry-pi.md": 1,
    "docs/how-to/weights-to-other-libraries.md": 1,
    "docs/installation.md": 1,
    "docs/quantization.md": 3,
    "docs/runtimes.md": 1,
    "docs/how-to/segmenter.md": 1,
    "docs/how-to/several-heads.md": 1,
    "docs/training.md": 5,
}
"""Page → how many of its blocks no test runs; the page says why."""

NOT_FOLLOWED = {"RELEASING.md"}
"""It publishes a release."""

FILES = {"docs/plugins.md": (7, 5)}
"""Page → how many of its blocks are files that it writes, and that lie there and are compared."""

EXPORTING = ("README.md", "docs/export.md", "docs/quantization.md", "docs/runtimes.md")
"""Pages that export models for runtimes, which takes longest."""

INSTALLING = (
    "docs/plugins.md",
    "examples/featuretap-efficientnet-lite/README.md",
    "examples/featuretap-mobilenet-v4/README.md",
)
"""Pages that install a distribution, and so need an environment of their own."""

LANGUAGES = {"python", "bash", "console", "toml", "json", "yaml", "text"}

FENCE = re.compile(r" *(`{3,}|~{3,})(.*)")
EXEMPTION = re.compile(r"<!-- *not run(.*?)-->\s*$", re.DOTALL)
INCLUDE = re.compile(r'^--8<-- "([\w./-]+):([\w-]+)"$', re.MULTILINE)
INLINE_CODE = re.compile(r"(`+).*?\1", re.DOTALL)
LINKS = (
    re.compile(r"\]\(<?([^)\s>]+)"),
    re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE),
    re.compile(r"(?:src|srcset|href)=\"([^\"]+)\""),
)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        before: the text between the previous block and this one.
        printed: the expected output, or None if the page does not show it.
        why_not_run: the reason, if no test should run it.
    """

    language: str
    text: str
    line: int
    before: str = ""
    printed: str | None = None
    why_not_run: str | None = None


def section(name: str, label: str) -> str:
    """Return the section of a page of ``docs/`` between pymdownx.snippets markers.

    Raises:
        ValueError: the page does not have the section exactly once.
    """
    marks = (f"<!-- --8<-- [{side}:{label}] -->\n" for side in ("start", "end"))
    found = re.findall("(.*)".join(map(re.escape, marks)), (ROOT / "docs" / name).read_text(), re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"docs/{name} has the section {label!r} {len(found)} times; expected once")
    return found[0]


def read_page(path: Path) -> str:
    """Return the text of a page with its includes resolved."""
    return INCLUDE.sub(lambda include: section(include[1], include[2]).rstrip("\n"), path.read_text())


def blocks(page: str) -> list[Block]:
    """Return the code blocks of a page, each with its expected output.

    Raises:
        ValueError: a block has no language, an unsupported language or no end, or is exempted without a reason.
    """
    found: list[Block] = []
    for language, text, line, before in _fenced(page):
        if language not in LANGUAGES:
            raise ValueError(f"line {line}: a block in {language!r}; known are {', '.join(sorted(LANGUAGES))}")
        if language == "text" and found and found[-1].language != "text" and not before.strip():
            last = found.pop()
            found.append(Block(last.language, last.text, last.line, last.before, text, last.why_not_run))
            continue
        exemption = EXEMPTION.search(before)
        reason = exemption[1].removeprefix(":").strip() if exemption else None
        if reason == "":
            raise ValueError(f"line {line}: why is this block not run? write <!-- not run: REASON -->")
        found.append(Block(language, text, line, before, why_not_run=reason))
    return found


def _fenced(page: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield language, text, line and preceding text of every fenced block."""
    lines = page.splitlines(keepends=True)
    before: list[str] = []
    start: tuple[int, str, str] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if start is None and fence:
            start = number, fence[1], fence[2].strip()
        elif start is None:
            before.append(line)
        elif fence and fence[1] == start[1] and not fence[2].strip():
            yield start[2], textwrap.dedent("".join(lines[start[0] + 1 : number])), start[0] + 1, "".join(before)
            before, start = [], None
    if start:
        raise ValueError(f"line {start[0] + 1}: a block without an end")


def seen(text: str) -> list[str]:
    """Return the lines without invisible differences."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def agree(stated: str, printed: str) -> bool:
    """Return whether the expected output matches the actual output."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in seen(stated)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in seen(printed))) is not None


def commands(session: str) -> list[tuple[str, str]]:
    """Return each command of a terminal session with its output. `> ` continues a command.

    Raises:
        ValueError: the session does not begin with a command.
    """
    found: list[tuple[str, str]] = []
    for line in session.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif not found:
            raise ValueError("a session begins with a command, '$ …'")
        elif line.startswith("> ") and not found[-1][1]:
            found[-1] = (found[-1][0] + line[2:], "")
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def prose(page: str) -> str:
    """Return a page without its code blocks."""
    kept, inside = [], False
    for line in page.splitlines(keepends=True):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "".join(kept)


def anchors(page: str) -> set[str]:
    """Return the anchors of a page, by GitHub's rule."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?)#* *$", prose(page), re.MULTILINE):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", page))


def broken_links(path: Path) -> list[str]:
    """Return the broken links of a page. Links to other sites are not checked."""
    text = INLINE_CODE.sub("", prose(path.read_text()))
    broken = []
    for link in (link for pattern in LINKS for link in pattern.findall(text)):
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        if re.match(r"[a-z]+:", link) or target in BUILT:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


def missing_tests(page: str) -> list[str]:
    """Return the files and folders of tests/ that a page mentions but that do not exist."""
    return [path for path in re.findall(r"(?<![\w/-])tests/[\w/]+(?:\.py)?", page) if not (ROOT / path).exists()]
