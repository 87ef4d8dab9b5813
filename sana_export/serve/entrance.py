"""Who may come in: no other site's pages, no borrowed names, no strangers without the key.

A page on another site can make a browser send requests here, and with a name of its own that it lets point to this
machine (DNS rebinding) it can even read the answers. So every request, whatever its method, must name this server in
Host by a name that is ours, and must not come from a page of another origin.
"""

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sana_export.serve.metrics import Metrics
from sana_export.serve.refusals import Refusal

__all__ = ["Entrance", "Gate", "is_loopback", "json_refusal"]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/", "/healthz", "/app.js", "/style.css", "/icon.svg")  # what may be had without the key
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Entrance:
    """The rules for one server."""

    host: str  # that it listens on
    key: str | None = None
    names: tuple[str, ...] = ()  # further names of this server, such as a reverse proxy's

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise a Refusal unless the request may come in."""
        host = headers.get("host", "")
        if not self._is_ours(_hostname(host)):
            message = "the Host header does not name this server; open it by its own address, or add --allow-host NAME"
            raise Refusal(403, "wrong_host", message)
        if self._is_foreign(method, path, host, headers):
            message = "a page of another site sent this; use the server's own page, or a program outside of a browser"
            raise Refusal(403, "wrong_origin", message)
        if self.key is not None and path not in OPEN_PATHS and not self._has_key(headers):
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise Refusal(401, "wrong_key", message, headers={"WWW-Authenticate": "Bearer"})

    def _is_ours(self, name: str) -> bool:
        """Names that nobody else can make point here: our own, and where others may reach us any IP address."""
        known: Iterable[str] = (self.host, *self.names)
        if is_loopback(self.host):
            return name in (*LOOPBACK_NAMES, *known)
        return name in (*LOOPBACK_NAMES, *known, socket.gethostname().lower()) or _is_address(name)

    def _is_foreign(self, method: str, path: str, host: str, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())
        site = headers.get("sec-fetch-site", "none")
        opened = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"  # a link to our page
        return site not in ("none", "same-origin") and not opened

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), (self.key or "").encode())
        return scheme.lower() == "bearer" and right


class Gate:
    """Lets requests in, counts the answers, and puts the protective headers on every one of them."""

    def __init__(self, app: ASGIApp, entrance: Entrance, metrics: Metrics) -> None:
        self._app = app
        self._entrance = entrance
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(_route(scope["path"]), message["status"])
                message = {**message, "headers": _protected(message["headers"])}
            await send(message)

        try:
            self._entrance.check(scope["method"], scope["path"], Headers(scope=scope))
        except Refusal as refusal:
            await json_refusal(Request(scope), refusal)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)


def json_refusal(request: Request, error: Exception) -> JSONResponse:
    """The answer that says why there is none."""
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), error.status, error.headers)


def _protected(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    given = {name.lower() for name, _ in headers}
    ours = ((name.encode(), value.encode()) for name, value in HEADERS.items())
    return [*headers, *((name, value) for name, value in ours if name not in given)]


def _hostname(host: str) -> str:
    """The name in a Host header, without its port; empty when it is malformed."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    return name.lower().removesuffix(".") if port == "" or (port.isascii() and port.isdigit()) else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _route(path: str) -> str:
    """The path as the metrics show it: few different ones, whatever clients ask for."""
    if path.startswith("/v1/jobs/"):
        return "/v1/jobs/{id}"
    known = (*OPEN_PATHS, "/metrics", "/v1/jobs", "/v1/images/generations", "/v1/models", "/v1/capabilities")
    return path if path in known else "other"
