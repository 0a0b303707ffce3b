"""Refuses requests of other web pages, and uploads beyond a total size.

A page of another server, or of another port of this machine, may send requests to this one without reading the answers,
and thereby fill the disk with uploads. Browsers name the origin of such requests in `Origin` and `Sec-Fetch-Site`.
Programs that are not browsers send neither and are answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from causaldiffae.explorer.uploads import MAX_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_TOTAL_BYTES: Final = 256 << 20
FORM_BYTES: Final = 64 << 10
"""What a form may add to the file that it uploads."""
_OWN_SITES: Final = ("same-origin", "none")  # "none": typed or bookmarked by the user


class RequestGuard:
    """ASGI middleware.

    Args:
        app: the application.
        folder: where it stores uploads and other temporary files.
    """

    def __init__(self, app: App, folder: Path) -> None:
        self.app, self.folder = app, folder
        self._arriving = 0  # bytes of uploads that are being received

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if is_foreign(scope["method"], scope["path"], headers):
            await _refuse(send, 403, "expected a request of this page, got one of another page")
            return
        if scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if not length.isdecimal():
            await _refuse(send, 411, "upload: expected a Content-Length, got none")
        elif int(length) > MAX_BYTES + FORM_BYTES:
            await _refuse(send, 413, f"upload: expected at most {MAX_BYTES >> 20} MiB, got {int(length) >> 20} MiB")
        elif self._stored() + self._arriving + int(length) > MAX_TOTAL_BYTES:
            limit = f"{MAX_TOTAL_BYTES >> 20} MiB"
            await _refuse(send, 413, f"upload: expected at most {limit} in total; uploads are deleted after an hour")
        else:
            self._arriving += int(length)
            try:
                await self.app(scope, receive, send)
            finally:
                self._arriving -= int(length)

    def _stored(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def is_foreign(method: str, path: str, headers: MutableMapping[str, str]) -> bool:
    """Whether a request comes from another web page; opening this page by a link there is none."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{headers.get('host', '')}".lower():
        return True
    if headers.get("sec-fetch-site", "none") in _OWN_SITES:
        return False
    opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (opened and method == "GET" and path == "/")


async def _refuse(send: Send, code: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
