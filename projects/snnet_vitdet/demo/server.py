"""Serves the page: to this machine alone, files of the page's own alone."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator

import gradio as gr

from snnet_vitdet.errors import InputError

from .page import LOOK

__all__ = ["check_address", "private_uploads", "served"]


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
def private_uploads() -> Iterator[str]:
    """A folder for what gradio stores, gone afterwards; pages must be built within."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="snnet-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextlib.contextmanager
def served(page: gr.Blocks, host: str, port: int, max_upload_mb: float) -> Iterator[str]:
    """Serves a page for as long as the context lasts.

    Args:
        page: What to serve.
        host: Address to listen on.
        port: Port to listen on.
        max_upload_mb: Larger files are refused.

    Yields:
        The page's address.

    Raises:
        InputError: If nothing can listen there.
    """
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=int(max_upload_mb * 1e6),
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
