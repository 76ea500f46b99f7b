"""What comes before gradio: who may ask, for what, and how much a request may bring along."""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .uploads import bytes_stored, is_upload

__all__ = ["Gate"]

# What the page in a browser asks for, and the server itself at its start. All else that gradio
# serves is closed: among it are ways around the queue, to other addresses, and to its internals.
_PAGE = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.+"
    r"|/gradio_api/(app_id|startup-events|queue/data|upload_progress)"
)
_FILE = re.compile(r"/gradio_api/file=(.+)", re.DOTALL)
_UPLOAD = "/gradio_api/upload"
_JOIN = "/gradio_api/queue/join"

# Of the request that asks for an answer: the state of the controls.
_MAX_STATE = 100_000
# Around the files in an upload: boundaries and names.
_MAX_ENVELOPE = 100_000
# Of all pictures there are at a time, uploaded and drawn, in uploads of the largest size.
_MAX_STORED = 50


class Gate:
    """Passes on to gradio's application what the page needs, and refuses everything else."""

    def __init__(self, app: ASGIApp, names: Collection[str], max_upload: int) -> None:
        """
        Args:
            app: What to pass requests on to.
            names: By which the page may be called, in lower case. Addresses in numbers always may:
                another site can give its own name any address, but not its pages this origin.
            max_upload: Bytes of all files of a request together.
        """
        self._app, self._names, self._max_upload = app, frozenset(names), max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has it answered."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            refused = self._refused(scope)
            await (refused or self._app)(scope, receive, send)

    def _refused(self, scope: Scope) -> PlainTextResponse | None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        host = _host_name(headers.get("host", ""))
        if not self._is_own(host):
            return PlainTextResponse(
                f"The page does not go by the name {host!r}. Whoever runs it can allow the name: "
                "--allow-host.",
                403,
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_same(origin, headers["host"]):
            return PlainTextResponse("Pages of other sites may not ask this one.", 403)
        if method in ("GET", "HEAD"):
            if file := _FILE.fullmatch(path):
                if not is_upload(file[1]):
                    return PlainTextResponse("Only what was uploaded here is served.", 403)
            elif not _PAGE.fullmatch(path):
                return PlainTextResponse("There is no such page.", 404)
            return None
        limits = {_UPLOAD: self._max_upload + _MAX_ENVELOPE, _JOIN: _MAX_STATE}
        if method != "POST" or path not in limits:
            return PlainTextResponse("There is nothing to post to here.", 404)
        # The server reads no more than was announced, unless the body comes in chunks, whose sizes
        # then count whatever was announced beside them.
        if "transfer-encoding" in headers:
            return PlainTextResponse("A request must come as a whole, not in chunks.", 411)
        length = headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            return PlainTextResponse("A request must tell its length.", 411)
        if int(length) > limits[path]:
            return PlainTextResponse(f"A request may bring {limits[path]} bytes, not more.", 413)
        if path == _UPLOAD and bytes_stored() > _MAX_STORED * self._max_upload:
            return PlainTextResponse("There is no room for more pictures: try in an hour.", 507)
        return None

    def _is_own(self, host: str) -> bool:
        return _is_number(host) or host in self._names

    def _is_same(self, origin: str, host: str) -> bool:
        """Whether a request comes from a page of this very server, its port included."""
        address = origin.partition("://")[2].lower()
        # A proxy may tell another name and port than those in the visitor's browser. By localhost
        # and by number, other programs of the machine have pages, too, at other ports.
        name = _host_name(address)
        by_proxy = name in self._names and name != "localhost" and not _is_number(name)
        return by_proxy or address == host.lower()


def _is_number(host: str) -> bool:
    """Whether a host is an address in numbers."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(address: str) -> str:
    """The name of ``name:port`` or ``[address]:port``, empty if it cannot be one."""
    try:
        parts = urlsplit(f"//{address}")
        return (parts.hostname or "") if parts.netloc == address and "@" not in address else ""
    except ValueError:
        return ""
