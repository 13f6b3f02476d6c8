"""MkDocs' hooks: pages that are generated, and documents of the repository that lie beside `docs/`."""

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

BESIDE = {
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "releasing.md": "RELEASING.md",
    "results.md": "benchmarks/RESULTS.md",
    "examples.md": "examples/README.md",
    "example-plugin.md": "examples/featuretap-mobilenet-v4/README.md",
    "example-efficientnet-lite.md": "examples/featuretap-efficientnet-lite/README.md",
}
"""Pages of the site → the documents of the repository that they are."""

HOME = {"README.md": "index.md"}

LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


@event_priority(100)  # before the plugin has read its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let the reference be made from a folder with the package alone.

    The repository's root, which is the package, also holds environments, and the reference's reader would walk through
    them, for minutes.
    """
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    package = folder / "featuretap"
    package.mkdir()
    # A link to this file would be followed, and lead back to the root.
    shutil.copy(ROOT / "__init__.py", package)
    for name in _folders():
        (package / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the documents from beside `docs/`."""
    made = {"zoo.md": zoo.page(), "command-line.md": command_line.page()}
    made |= {page: (ROOT / source).read_text() for page, source in BESIDE.items()}
    for name, text in made.items():
        handwritten = files.get_file_from_path(name)
        if handwritten:
            files.remove(handwritten)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave `docs/` to their pages of the site."""
    name = page.file.src_uri
    return relinked(markdown, name, BESIDE.get(name, f"docs/{name}"))


def _folders() -> list[str]:
    """Return the folders of the package that lie in the repository's root."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    return [name.removeprefix("featuretap.") for name in listed if name.count(".") == 1]


def relinked(markdown: str, page: str, source: str) -> str:
    """Rewrite a document's relative links as its page's; to what is no page, such as a module, there is none."""
    pages = {document: name for name, document in BESIDE.items()} | HOME

    def rewritten(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        name = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if name is None:
            return text
        return f"[{text}]({os.path.relpath(name, os.path.dirname(page))}{anchor})"

    return LINK.sub(rewritten, markdown)
