"""Who may ask a server and how its answers may be used: host names, other sites' pages, headers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from coe_core.serving.limits import printable_text, refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("coe-serve")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]
# Where an answer brings no policy of its own (the pages do), nothing in it may load or run.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class Guard:
    """ASGI middleware: refuses host names that are not the server's, and other sites' pages.

    A page of another site can make a browser send requests here. If it has bound its own name to this
    machine's address (DNS rebinding), the browser would even let it read the answers; so a request
    must be for an address, for localhost, or for one of ``host_names``. If it posts a form across
    sites, the browser says so (``Sec-Fetch-Site``, ``Origin``) and the request is refused: strangers'
    pages cannot spend this server. Programs send neither header.

    Args:
        app: the application.
        host_names: besides addresses and localhost; None, or a "*" among them: any.
    """

    def __init__(self, app: ASGIApp, *, host_names: Iterable[str] | None):
        self.app = app
        names = None if host_names is None else {name.lower().rstrip(".") for name in host_names}
        self.names = None if names is not None and "*" in names else names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if host and not self.is_ours(host):
            name = printable_text(host, 80)
            detail = f"this server has no name {name!r}; `--host-names` gives it one"
            await refuse(send, 400, detail)
        elif scope["method"] not in ("GET", "HEAD") and not self._same_site(headers, host):
            await refuse(send, 403, "pages of other sites may not use this server")
        elif scope["method"] == "HEAD":  # as GET; the server itself leaves the body out
            await self.app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self.app(scope, receive, send)

    def is_ours(self, host: str) -> bool:
        """Whether a request for this host (and port) is meant for us.

        Example:
            >>> guard = Guard(None, host_names=["coe.example.org"])
            >>> [guard.is_ours(host) for host in ("127.0.0.1:80", "[::1]", "COE.example.org:80", "a.b")]
            [True, True, True, False]
        """
        return self.names is None or self._is_known(_name_of(host))

    def _is_known(self, name: str | None) -> bool:
        if name is None:
            return False
        return name == "localhost" or name in (self.names or ()) or _is_address(name)

    def _same_site(self, headers: dict[bytes, str], host: str) -> bool:
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if site in ("same-origin", "none"):
            return True
        if site is None and origin is None:
            return True  # no browser
        try:
            wanted = urlsplit(origin or "")
        except ValueError:
            return False
        if wanted.netloc == "":  # such as "null", of a page in a frame without rights
            return False
        if site is None and _same_place(wanted.netloc, host, wanted.scheme):
            return True
        return (self.names is not None) and _name_of(wanted.netloc) in self.names


def _name_of(host: str) -> str | None:
    """The name or address in ``name:port``, lower case; None if it is none."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name.rstrip(".") if name else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_place(netloc: str, host: str, scheme: str) -> bool:
    """Whether an origin is what the request was sent to; a scheme's own port may be left out."""
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return netloc.lower().removesuffix(port) == host.lower().removesuffix(port)


def _without_body(send: Send) -> Send:
    async def empty(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return empty


class LastResort:
    """ASGI middleware, outermost: counts answers by status, adds headers, answers what went wrong.

    Args:
        app: the application.
        count: told every answer's status.
    """

    def __init__(self, app: ASGIApp, *, count: Callable[[int], None]):
        self.app, self.count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.count(message["status"])
                headers = list(message.get("headers", [])) + _HEADERS
                if all(name.lower() != _POLICY[0] for name, _ in headers):
                    headers.append(_POLICY)
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, guarded)
        except asyncio.CancelledError:  # only a server that stops cancels, after its time of grace
            if not started:
                await refuse(guarded, 503, "the server stops")
        except Exception:
            if started:
                raise
            log.exception("a request failed")
            await refuse(guarded, 500, "the server failed; its log has why")
