"""Open a page in the browser, on this machine alone: drop a bracket, compare, adjust, save."""

from __future__ import annotations

import argparse
import socket

from ffmef.commands.fuse import whole_number
from ffmef.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", default="8765", help="port of the page (default: 8765)")
    parser.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")


def run(args: argparse.Namespace) -> None:
    port = whole_number(args.port, "--port", 1, 65535)
    try:
        import nicegui  # noqa: F401
    except ImportError:
        raise InputError("needs nicegui: pip install 'ffmef[app]'") from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"--port {port} cannot be used: {error.strerror}") from None
    from ffmef.app import serve

    print(f"ffmef app: http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    serve(port, not args.no_browser)
