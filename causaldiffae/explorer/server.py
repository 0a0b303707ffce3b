"""Serves the page on this machine only, without telemetry.

The server listens on 127.0.0.1 and accepts only requests for that host, which prevents DNS rebinding, and none of other
web pages (guard.py). Its content security policy keeps the browser from loading anything from other servers.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from causaldiffae.errors import InputError
from causaldiffae.explorer.guard import RequestGuard
from causaldiffae.explorer.page import STYLE, Page
from causaldiffae.explorer.registry import ModelRegistry
from causaldiffae.explorer.uploads import MAX_BYTES

HOST: Final = "127.0.0.1"
PORT: Final = 7860
_TRIED: Final = 20
_POLICY: Final = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


def listen(port: int | None) -> socket.socket:
    """Opens a socket on this machine: on `port`, or by default on the first free port from 7860 on.

    Raises:
        InputError: if the port is in use or out of range.
    """
    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"port: expected 0..65535 (0 picks a free one), got {port}")
    candidates = range(PORT, PORT + _TRIED) if port is None else [port]
    for number in candidates:
        try:
            return socket.create_server((HOST, number))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
    tried = f"{PORT}..{PORT + _TRIED - 1}" if port is None else port
    raise InputError(f"port: expected a free port, got {tried} ({reason}); choose another with --port")


def make_app(registry: ModelRegistry, uploads: Path | None = None) -> Any:
    """Builds the web application (FastAPI) with the page at "/".

    Args:
        registry: the models.
        uploads: folder for uploads and other temporary files; default: that of gradio.

    Raises:
        InputError: if gradio is not installed.
    """
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_ENABLE_TELEMETRY"):
        os.environ[name] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    uploads = uploads or Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio"))
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    try:
        import gradio as gr
        from fastapi import FastAPI, Request, Response
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise InputError(
            f"explorer: expected gradio to be installed ({error}); run pip install 'causaldiffae[app]'"
        ) from None
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def set_policy(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    app.add_middleware(RequestGuard, folder=uploads)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    theme = gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"], primary_hue="blue", radius_size="md")
    return gr.mount_gradio_app(
        app, Page(registry).build(), path="/", server_name=HOST, theme=theme, css=STYLE.read_text(encoding="utf-8"),
        max_file_size=MAX_BYTES, footer_links=[], ssr_mode=False, pwa=False, enable_monitoring=False, show_error=True,
        mcp_server=False, run_history=False,
    )  # fmt: skip


def serve(registry: ModelRegistry, port: int | None = None, on_ready: Callable[[str], object] | None = None) -> None:
    """Serves the page until it is interrupted, and deletes uploads then; `on_ready` is called with the address."""
    listening = listen(port)
    with listening, tempfile.TemporaryDirectory(prefix="causaldiffae-") as uploads:
        app = make_app(registry, Path(uploads))
        import uvicorn

        address = f"http://{HOST}:{listening.getsockname()[1]}/"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started and on_ready is not None:
                    on_ready(address)

        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listening])
