"""Serves the page: to this machine alone, with no files but the page's own and the uploads.

``Gate`` decides about every request before gradio sees it: who asks, for what, and how much it
brings along. Uploads lie in a folder of their own; the page reads no other file of the machine.
"""

import contextlib
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import temporary_folder

__all__ = ["check_address", "private_uploads", "served"]

# What the page in a browser asks for, and the server itself at its start. Everything else that
# gradio serves is closed: ways around the queue, to other addresses, and to its internals.
_PAGE = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.+"
    r"|/gradio_api/(app_id|startup-events|queue/data|upload_progress)"
)
_FILE = re.compile(r"/gradio_api/file=(.+)", re.DOTALL)
_UPLOAD = "/gradio_api/upload"
_JOIN = "/gradio_api/queue/join"

# Bytes of a request for an answer, which has the state of the controls.
_MAX_STATE = 100_000
# Bytes around the files of an upload: boundaries and names.
_MAX_ENVELOPE = 100_000
# Limit of all pictures that are kept, uploaded and drawn, as a multiple of the upload limit.
_MAX_STORED = 50
# What gradio writes beside the path of a file.
_META = {"_type": "gradio.FileData"}


def check_address(host: str, port: int) -> None:
    """Checks that the program can listen there, before it loads a model.

    Raises:
        InputError: If it cannot.
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
    page: gr.Blocks,
    host: str,
    port: int,
    max_upload_mb: float,
    names: Sequence[str] = (),
    **look: object,
) -> Iterator[str]:
    """Serves a page for as long as the context lasts.

    Args:
        page: The page.
        host: Address to listen on.
        port: Port to listen on.
        max_upload_mb: Requests with more are refused, in one file or in many.
        names: Names that the page may be called by, besides localhost, ``host`` and every numeric
            address.
        **look: Further arguments of gradio's ``launch``.

    Yields:
        The page's address.
    """
    max_upload = int(max_upload_mb * 1e6)
    own = {name.lower() for name in ("localhost", host, *names)}
    _check_inputs(page)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_upload,
        app_kwargs={"middleware": [Middleware(Gate, own, max_upload)]},
        prevent_thread_lock=True,
        quiet=True,
        inline=False,
        # Set here, because environment variables can set them otherwise.
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        allowed_paths=[],
        footer_links=[],
        **look,
    )
    try:
        yield page.local_url
    finally:
        page.close(verbose=False)


class Gate:
    """Passes on to gradio's application what the page needs, and refuses everything else."""

    def __init__(self, app: ASGIApp, names: Collection[str], max_upload: int) -> None:
        """
        Args:
            app: The application.
            names: Names that the page may be called by, in lower case. Every numeric address is
                allowed: the pages of another site never have one as their host.
            max_upload: Limit of the bytes of all files in a request together.
        """
        self._app, self._names, self._max_upload = app, frozenset(names), max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request or passes it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            refused = self._refused(scope)
            await (refused or self._app)(scope, receive, send)

    def _refused(self, scope: Scope) -> PlainTextResponse | None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        host = _host_name(headers.get("host", ""))
        if not (_is_number(host) or host in self._names):
            return PlainTextResponse(
                f"This page is not served under the name {host!r}. Start it with --allow-host to "
                "allow the name.",
                403,
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_same(origin, headers["host"]):
            return PlainTextResponse("Pages of other sites may not ask this one.", 403)
        if method in ("GET", "HEAD"):
            if file := _FILE.fullmatch(path):
                if not _is_upload(file[1]):
                    return PlainTextResponse("Only what was uploaded here is served.", 403)
            elif not _PAGE.fullmatch(path):
                return PlainTextResponse("There is no such page.", 404)
            return None
        limits = {_UPLOAD: self._max_upload + _MAX_ENVELOPE, _JOIN: _MAX_STATE}
        if method != "POST" or path not in limits:
            return PlainTextResponse("There is nothing to post to here.", 404)
        # The server reads no more than the announced length, unless the body comes in chunks: then
        # their sizes count, whatever was announced.
        if "transfer-encoding" in headers:
            return PlainTextResponse("A request must come as a whole, not in chunks.", 411)
        length = headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            return PlainTextResponse("A request must tell its length.", 411)
        if int(length) > limits[path]:
            return PlainTextResponse(f"A request may bring {limits[path]} bytes, not more.", 413)
        if path == _UPLOAD and _bytes_stored() > _MAX_STORED * self._max_upload:
            return PlainTextResponse("There is no room for more pictures: try in an hour.", 507)
        return None

    def _is_same(self, origin: str, host: str) -> bool:
        """Whether a request comes from a page of this very server, its port included."""
        address = origin.partition("://")[2].lower()
        # A proxy may tell another name and port than the visitor's browser shows. Other programs
        # of this machine have pages by localhost and by number, at other ports.
        name = _host_name(address)
        by_proxy = name in self._names and name != "localhost" and not _is_number(name)
        return by_proxy or address == host.lower()


def _is_number(host: str) -> bool:
    """Whether a host is a numeric address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(address: str) -> str:
    """The name in ``name:port`` or ``[address]:port``; empty if there cannot be one."""
    try:
        parts = urlsplit(f"//{address}")
        return (parts.hostname or "") if parts.netloc == address and "@" not in address else ""
    except ValueError:
        return ""


@contextlib.contextmanager
def private_uploads() -> Iterator[str]:
    """A folder for what gradio stores, removed afterwards; pages must be built within."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with temporary_folder("snnet-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def _is_upload(path: str | None) -> bool:
    """Whether a path is a regular file in the folder of uploads, wherever links lead to."""
    try:
        real = Path(path).resolve(strict=True)
        folder = Path(gr.utils.get_upload_folder()).resolve(strict=True)
        return real.is_relative_to(folder) and stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError, TypeError, ValueError):
        # No path, a loop of links, a zero byte: nothing can be read there.
        return False


def _bytes_stored() -> int:
    total = 0
    for path in Path(gr.utils.get_upload_folder()).rglob("*"):
        # gradio deletes old files at any time.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _check_inputs(page: gr.Blocks) -> None:
    """Makes a page check all that a visitor sends before gradio processes it.

    gradio fetches an address wherever one is sent, even as the value of a slider, and trusts a path
    that does not say to be a file's.
    """
    preprocess = page.preprocess_data

    async def checked(function, inputs, *args, **kwargs):
        for each in _objects_in(inputs):
            if each != _META and not _is_upload(each.get("path")):
                raise gr.Error("Only files that were uploaded are taken.", print_exception=False)
        # An image may be missing; every control has a value.
        components = zip(function.inputs, inputs, strict=False)
        if any(value is None and not isinstance(each, gr.Image) for each, value in components):
            raise gr.Error("A control has no value.", print_exception=False)
        try:
            return await preprocess(function, inputs, *args, **kwargs)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise gr.Error("A control has a wrong value.", print_exception=False) from error

    page.preprocess_data = checked


def _objects_in(value: object) -> Iterator[dict]:
    """All JSON objects within a value, at any depth."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects_in(each)
