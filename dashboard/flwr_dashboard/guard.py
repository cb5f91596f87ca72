"""Who may ask: checks of every request before a page is made, and headers on every answer.

The dashboard shows pictures and settings of a run to whoever knows its token: not to another user
of the machine, not to another page open in the same browser, not under another host's name.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """An ASGI application in front of another.

    Parameters
    ----------
    token
        What a visitor must show: in the address, once; then in a cookie, or as a bearer's.
    names
        Host names under which the dashboard may be asked for, beside addresses and ``localhost``.
    cookie
        The cookie's name; one a port, since cookies do not tell ports apart.
    """

    def __init__(self, app: ASGIApp, *, token: str, names: Iterable[str], cookie: str) -> None:
        self._app = app
        self._token = token
        self._names = {"localhost", *(name.lower() for name in names)}
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        host = _host(headers.get("host", ""))
        if not (host in self._names or _is_address(host)):
            return _no(
                421, "This dashboard is not known under that host name; start it with --name."
            )
        if _is_foreign(headers):
            return _no(403, "Another site's page may not read this dashboard.")
        if request.method not in ("GET", "HEAD"):
            return _no(405, "This dashboard only shows.")
        shown = request.query_params.get("token")
        if shown is not None and self._is_token(shown):
            return self._welcome(request)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(request.cookies.get(self._cookie, "")) or self._is_token(bearer):
            return None
        return _no(
            403, "Open the address that the dashboard printed when it started: it holds a token."
        )

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(errors="replace"), self._token.encode())

    def _welcome(self, request: Request) -> Response:
        """Keep the token in a cookie and out of the address, which others may see."""
        kept = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
        # Relative, so that a proxy's prefix stays.
        path = "./" + request.url.path.rpartition("/")[2]
        there = f"{path}?{urlencode(kept)}" if kept else path
        answer = RedirectResponse(there, status_code=303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer


def _no(status: int, why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=status)


def _host(header: str) -> str:
    """Return the host of a ``Host`` header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    # A page elsewhere can make its own name point here, but not an address.
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_foreign(headers: Headers) -> bool:
    """Whether another site's page asks, rather than one of ours or a person."""
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != headers.get("host", "").lower():
        return True
    site = headers.get("sec-fetch-site", "none")
    return site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin; None of one that is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
