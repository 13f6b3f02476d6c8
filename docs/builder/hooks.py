"""Hooks for MkDocs: generated pages, and pages from documents outside `docs/`."""

from __future__ import annotations

import atexit
import os.path
import re
import shutil
import tomllib
from pathlib import Path
from tempfile import mkdtemp

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.builder import command_line, zoo

ROOT = Path(__file__).parents[2]

OUTSIDE = {
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "releasing.md": "RELEASING.md",
    "results.md": "benchmarks/RESULTS.md",
    "examples.md": "examples/README.md",
    "example-plugin.md": "examples/featuretap-mobilenet-v4/README.md",
    "example-efficientnet-lite.md": "examples/featuretap-efficientnet-lite/README.md",
}
"""Page of the site → its document in the repository."""

HOME = {"README.md": "index.md"}

LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Point mkdocstrings at a folder that contains only the package.

    The repository's root is the package. It also contains virtual environments, which mkdocstrings would search for
    minutes.
    """
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    package = folder / "featuretap"
    package.mkdir()
    # A copy, because mkdocstrings follows a link to this file back to the root.
    shutil.copy(ROOT / "__init__.py", package)
    for name in _folders():
        (package / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the documents outside `docs/`."""
    generated = {"zoo.md": zoo.page(), "command-line.md": command_line.page()}
    generated |= {page: (ROOT / source).read_text() for page, source in OUTSIDE.items()}
    for name, text in generated.items():
        handwritten = files.get_file_from_path(name)
        if handwritten:
            files.remove(handwritten)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to documents at their pages of the site."""
    name = page.file.src_uri
    return rewrite_links(markdown, name, OUTSIDE.get(name, f"docs/{name}"))


def _folders() -> list[str]:
    """Return the names of the top-level subpackages."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    return [name.removeprefix("featuretap.") for name in listed if name.count(".") == 1]


def rewrite_links(markdown: str, page: str, source: str) -> str:
    """Return a document with relative links that work on its page; links to files that are not pages become text."""
    pages = {document: name for name, document in OUTSIDE.items()} | HOME

    def rewrite(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        name = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if name is None:
            return text
        return f"[{text}]({os.path.relpath(name, os.path.dirname(page))}{anchor})"

    return LINK.sub(rewrite, markdown)
