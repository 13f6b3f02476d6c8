"""A headless Chromium, a local file server, and pages that record messages and requests."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Handler(SimpleHTTPRequestHandler):
    """File handler that does not log requests."""

    def log_message(self, *args: Any) -> None:
        pass


def chromium() -> str:
    """Return the path of the installed Chromium, or fail the test."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no Chromium on the PATH; install it with apt-get install chromium")
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    """Run a browser with a temporary profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine and yield its address, without a trailing slash."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Visit:
    """A page in a new browser context.

    Attributes:
        page: Playwright's page.
        said: console warnings and errors, exceptions, and failed requests.
        asked: addresses of all requests.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text) if message.type in LOUD else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("requestfailed", lambda request: self.said.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: self.asked.append(request.url))


LOUD = {"error", "warning"}


@contextmanager
def visited(browser: Browser, address: str, **settings: Any) -> Iterator[Visit]:
    """Open an address in a new context. Settings such as `viewport` are passed to Playwright."""
    context = browser.new_context(**settings)
    try:
        visit = Visit(context.new_page())
        visit.page.goto(address)
        yield visit
    finally:
        context.close()
