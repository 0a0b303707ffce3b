"""The page's address: this machine only, no telemetry, nothing loaded from elsewhere.

The server listens on 127.0.0.1, answers only requests that name this machine (so that no foreign page can reach it
through a name of its own), and tells the browser by its content policy to load from nowhere else.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any, Final

from causaldiffae.errors import InputError
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
    """A socket on this machine: on `port`, or where it is None on the first free one from 7860 on.

    Raises:
        InputError: if the port is taken or no port.
    """
    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"port: {port} given, 0..65535 are allowed (0 takes any free one)")
    wanted = range(PORT, PORT + _TRIED) if port is None else [port]
    for number in wanted:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            reason = error.strerror
    which = (
        f"port: {port} is not to be had" if port is not None else f"port: none of {PORT}..{PORT + _TRIED - 1} is free"
    )
    raise InputError(f"{which} ({reason}); another one may be named with --port")


def make_app(registry: ModelRegistry) -> Any:
    """The web application (FastAPI) with the page at "/".

    Raises:
        InputError: if gradio is not installed.
    """
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_ENABLE_TELEMETRY"):
        os.environ[name] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio as gr
        from fastapi import FastAPI, Request, Response
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise InputError(f"the explorer needs gradio ({error}): pip install 'causaldiffae[app]'") from None
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def from_here_only(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    theme = gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"], primary_hue="blue", radius_size="md")
    return gr.mount_gradio_app(
        app, Page(registry).build(), path="/", server_name=HOST, theme=theme, css=STYLE.read_text(encoding="utf-8"),
        max_file_size=MAX_BYTES, footer_links=[], ssr_mode=False, pwa=False, enable_monitoring=False, show_error=True,
        mcp_server=False, run_history=False,
    )  # fmt: skip


def serve(registry: ModelRegistry, port: int | None = None, on_ready: Callable[[str], object] | None = None) -> None:
    """Serves the page until it is interrupted; `on_ready` is told its address. Uploads are gone afterwards."""
    listening = listen(port)
    with listening, tempfile.TemporaryDirectory(prefix="causaldiffae-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = make_app(registry)
        import uvicorn

        address = f"http://{HOST}:{listening.getsockname()[1]}/"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started and on_ready is not None:
                    on_ready(address)

        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listening])
