"""A local server that replaces download sites and the Hugging Face Hub."""

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

TOKEN = "hf_thetokenthatmaywrite"
"""The one that may upload."""


class Server:
    """A server of files by path. It answers paths below /owner/repository/resolve/ as the Hugging Face Hub does.

    Attributes:
        files: path → content.
        asked: requested paths in order.
        created: requests to create a repository.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        files, asked, created = self.files, self.asked, self.created

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                # All revisions are the same.
                repository, resolve, name = re.sub(f"/resolve/(v1|{COMMIT})/", "/resolve/main/", self.path).partition(
                    "/resolve/main/"
                )
                content = files.get(repository + resolve + name)
                if content is None:
                    self.send_response(404, "File not found")
                    if "/resolve/" in self.path:
                        known = any(path.startswith(f"{repository.split('/resolve/')[0]}/resolve/") for path in files)
                        lacking = "Entry" if resolve else "Revision"
                        self.send_header("X-Error-Code", f"{lacking if known else 'Repo'}NotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                if "/resolve/" in self.path:
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("X-Linked-Size", str(len(content)))
                    self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_POST(self) -> None:
                asked.append(self.path)
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self.answer(401, {"error": "Invalid username or password."})
                elif self.path == "/api/repos/create":
                    wanted = json.loads(content)
                    created.append(wanted)
                    self.answer(
                        200, {"url": f"http://{self.headers['Host']}/{wanted['organization']}/{wanted['name']}"}
                    )
                elif self.path.endswith("/preupload/main"):
                    names = [file["path"] for file in json.loads(content)["files"]]
                    regular = {"uploadMode": "regular", "shouldIgnore": False}
                    self.answer(200, {"files": [{"path": name, **regular} for name in names]})
                else:
                    repository = self.path.removeprefix("/api/models").removesuffix("/commit/main")
                    for line in map(json.loads, content.splitlines()):
                        if line["key"] == "file":
                            path = f"{repository}/resolve/main/{line['value']['path']}"
                            files[path] = base64.b64decode(line["value"]["content"])
                    address = f"http://{self.headers['Host']}{repository}/commit/{COMMIT}"
                    self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})

            def answer(self, status: int, content: dict[str, Any]) -> None:
                encoded = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
