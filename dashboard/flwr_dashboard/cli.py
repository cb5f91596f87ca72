"""``flwr-dashboard RUNS_DIR``: serve runs, or write one as a report or for TensorBoard.

Prints the address to open, which holds a token: another user of this machine does not know it. What
is wrong with an argument is said in one sentence.
"""

import argparse
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

PORT = 8351
"""Where the dashboard listens; the next free one if it is taken and none was asked for."""
TOKEN = "FLWR_DASHBOARD_TOKEN"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where an argument is wrong."""
    chosen = _parser().parse_args(arguments)
    try:
        if not chosen.folder.is_dir():
            raise ValueError(
                f"{str(chosen.folder)!r} must be a folder of runs; name the one that holds "
                "events.jsonl or folders that do"
            )
        if chosen.report or chosen.tensorboard:
            return _write(chosen)
        return _serve(chosen)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flwr-dashboard", description="Watch Flower runs.")
    parser.add_argument("folder", type=Path, metavar="RUNS_DIR", help="a folder of runs, or a run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help=f"port ({PORT}, or the next that is free)")
    parser.add_argument(
        "--token", help=f"what a visitor must show (drawn anew; better in ${TOKEN}, unseen by ps)"
    )
    parser.add_argument(
        "--name", action="append", default=[], help="further host name that it is known under"
    )
    parser.add_argument("--report", type=Path, metavar="OUT.html", help="write one run as a file")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write for TensorBoard")
    parser.add_argument("--run", help="which run to write; the newest if not said")
    return parser


def _write(chosen: argparse.Namespace) -> int:
    from flwr_dashboard import report, tensorboard
    from flwr_dashboard.runs import Library, newest, whole

    library = Library(chosen.folder)
    run_id = chosen.run or newest(library)
    try:
        if chosen.report:
            text = report.write(library, run_id)
            chosen.report.write_text(text, encoding="utf-8")
            print(f"report of {run_id}: {chosen.report} ({len(text) / 1e6:.1f} MB)")
        if chosen.tensorboard:
            count = tensorboard.write(whole(library, run_id), chosen.tensorboard)
            print(f"{count} scalars of {run_id}: {chosen.tensorboard}")
    except OSError as error:
        where = chosen.report or chosen.tensorboard
        raise ValueError(f"{str(where)!r} cannot be written: {error}; name another") from error
    return 0


def _serve(chosen: argparse.Namespace) -> int:
    import uvicorn

    from flwr_dashboard.server import build

    token = chosen.token or os.environ.get(TOKEN) or secrets.token_urlsafe(18)
    here = _is_local(chosen.host)
    if not here and not (chosen.token or os.environ.get(TOKEN)):
        raise ValueError(
            f"--host {chosen.host} opens the dashboard to the network; say with --token or "
            f"${TOKEN} what a visitor must show"
        )
    listener = _listen(chosen.host, chosen.port)
    port = listener.getsockname()[1]
    names = [*chosen.name, *([] if here else [socket.gethostname(), chosen.host])]
    app = build(chosen.folder, token=token, names=names, cookie=f"flwr-dashboard-{port}")
    shown = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    print(f"Flower dashboard of {chosen.folder}: http://{shown}:{port}/?token={token}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", loop="asyncio",
        http="h11", server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on ``port``, or on the next free one if none was asked for.

    Raises
    ------
    ValueError
        It cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    wanted = range(PORT, PORT + 20) if port is None else [port]
    for number in wanted:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            listener.close()
            said = error
        else:
            return listener
    ports = f"--port {port}" if port is not None else f"--port {PORT} to {PORT + 19}"
    raise ValueError(f"{ports} on {host} cannot be listened on: {said}; name another with --port")


if __name__ == "__main__":
    sys.exit(main())
