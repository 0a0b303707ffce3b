"""A stand-in for the Hugging Face Hub that serves one model, so that huggingface_hub builds its own cache offline."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(folder: Path) -> Iterator[str]:
    """Serves the files of a folder as the only revision of every repository; yields the address of the hub."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {}
            if "/resolve/" in path:
                body = files[path.partition("/resolve/")[2].partition("/")[2]]
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": REVISION}
            elif "/tree/" in path:
                listed = [{"type": "file", "path": name, "size": len(content)} for name, content in files.items()]
                body = json.dumps(
                    [{**each, "oid": hashlib.sha1(each["path"].encode()).hexdigest()} for each in listed]
                ).encode()
            else:
                siblings = [{"rfilename": name} for name in files]
                body = json.dumps({"id": "any/model", "sha": REVISION, "siblings": siblings}).encode()
            self.send_response(200)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
