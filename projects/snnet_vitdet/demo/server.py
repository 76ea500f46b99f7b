"""Serves the page: to this machine alone, files of the page's own alone."""

import contextlib
import socket
from collections.abc import Iterator, Sequence

import gradio as gr
from starlette.middleware import Middleware

from snnet_vitdet.errors import InputError

from .gate import Gate
from .page import LOOK

__all__ = ["check_address", "served"]


def check_address(host: str, port: int) -> None:
    """Finds out whether one can listen there before a model is loaded for it.

    Raises:
        InputError: If not.
    """
    plain = host.strip("[]")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    try:
        socket.create_server((plain, port), family=family).close()
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): give another "
            "--port or --host"
        ) from error


@contextlib.contextmanager
def served(
    page: gr.Blocks, host: str, port: int, max_upload_mb: float, names: Sequence[str] = ()
) -> Iterator[str]:
    """Serves a page for as long as the context lasts.

    Args:
        page: What to serve.
        host: Address to listen on.
        port: Port to listen on.
        max_upload_mb: Requests with more are refused, in one file or in many.
        names: By which the page may be called, besides localhost, ``host`` and any address in
            numbers.

    Yields:
        The page's address.

    Raises:
        InputError: If nothing can listen there.
    """
    max_upload = int(max_upload_mb * 1e6)
    own = {name.lower() for name in ("localhost", host, *names)}
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_upload,
            app_kwargs={"middleware": [Middleware(Gate, own, max_upload)]},
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            # Said outright, because variables of the environment can say otherwise.
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            allowed_paths=[],
            footer_links=[],
            **LOOK,
        )
    except OSError as error:
        # It was free a moment ago.
        raise InputError(f"cannot listen on {host}, port {port}: it is in use now") from error
    try:
        yield page.local_url
    finally:
        page.close(verbose=False)
