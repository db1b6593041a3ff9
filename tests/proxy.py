"""A web proxy on 127.0.0.1 that leads every address to one server of this machine, whatever its name.

with proxy(server.http.server_port) as between:
    HTTP_PROXY=between.url
    between.asked          # ["GET http://weights.example/a.bin", "CONNECT weights.example:443"]
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Proxy:
    """Where it listens (`url`) and what was asked of it."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self.port = port
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """A running proxy before the server that listens at `port`; stopped at the end."""
    between = Proxy(port)
    thread = threading.Thread(target=between.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield between
    finally:
        between.http.shutdown()
        between.http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def do_GET(self) -> None:
        self.proxy.asked.append(f"GET {self.path}")
        wanted = {name: value for name, value in self.headers.items() if name in ("Range", "Accept-Encoding")}
        there = HTTPConnection("127.0.0.1", self.proxy.port)
        there.request("GET", urlsplit(self.path).path, headers=wanted)
        answer = there.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.read())
        there.close()

    def do_CONNECT(self) -> None:
        self.proxy.asked.append(f"CONNECT {self.path}")
        with socket.create_connection(("127.0.0.1", self.proxy.port)) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
            back.start()
            _pump(self.connection, there)
            back.join(5)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Tests read `asked`, nobody reads a log."""


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
