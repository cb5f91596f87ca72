"""One run's figures at ``/metrics``, for Prometheus, from within the run's own process.

The same figures as the dashboard gives of a folder (``metrics``), from the same events, while the
process lives; no file is read. Answers nothing but ``GET /metrics``. Needs the standard library
alone.
"""

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from flwr_dashboard import metrics, state


class Endpoint:
    """Serves while its block runs.

    Parameters
    ----------
    name
        What the run is called in the label ``run``.
    host, port
        Where; ``port`` 0 is any that is free.

    Attributes
    ----------
    port
        The port that it is.

    Raises
    ------
    ValueError
        The port is taken, or the host is not this machine's.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        self._name, self._run, self._lock = name, state.Run(), threading.Lock()
        try:
            self._server = _Server((host, port), _handler(self.text))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"metrics need a port that is free, got {port} at {host!r} ({error}); name another"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True
        )

    def take(self, record: Mapping[str, Any]) -> None:
        """Take one event in."""
        with self._lock:
            state.take(self._run, record)

    def text(self) -> str:
        """Return the figures as they are now."""
        with self._lock:
            standing = state.standing(self._run, time.time(), alive=True)
            return metrics.scrape([(self._name, self._run, standing)])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Or a slow reader would hold up the end of the run.
    block_on_close = False


def _handler(text: Any) -> type[BaseHTTPRequestHandler]:  # noqa: ANN401
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/metrics"
            body = text().encode() if found else b"the figures are at /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", metrics.CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
