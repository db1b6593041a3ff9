"""A web server on 127.0.0.1 that serves weights well or badly, as a test tells it.

with serve() as server:
    server.files["/a.bin"] = data
    server.behave("/a.bin", "busy", "cut")      # first answer 503, second cut off half way, then good ones
    download(server.url("/a.bin"), …)
    server.requests                             # [("/a.bin", None), ("/a.bin", "bytes=512-")]: path, Range header
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer

ANSWERS = (
    "good",  # 200, or 206 to a Range request
    "busy",  # 503
    "broken",  # 500
    *(f"reset-{share}" for share in range(0, 100, 10)),  # breaks the connection after that many per cent of what was asked for
    "tenth",  # breaks the connection after a tenth of the whole file
    "drip",  # good, in small pieces with a pause after each
    "crawl",  # a byte now and then, until `release` is set
    "cut",  # announces all of what was asked for, sends half of it, hangs up
    "stall",  # sends half and then nothing until `release` is set
    "slow",  # good, after 0.3 s
    "norange",  # 200 with the whole file whatever Range says
    "norange-206",  # 206 with a Content-Range of another file
    "nolength",  # good without Content-Length: ends by hanging up
    "oversize",  # one byte more than the file, honestly announced
    "oversize-nolength",  # one byte more than the file, without Content-Length
    "wrong",  # the right number of wrong bytes
    "gzip",  # claims a Content-Encoding
    "missing",  # 404
)


class WeightsServer:
    """What it serves (`files`), how (`behave`) and what was asked of it (`requests`)."""

    def __init__(self, certificate: Path | None = None) -> None:
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.start_over({})

    def start_over(self, files: dict[str, bytes]) -> None:
        """Serve these files well and forget all that was asked and told before."""
        self.files = files
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.half_sent = threading.Event()
        self.release = threading.Event()
        self._answers: dict[str, list[str]] = {}

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def behave(self, path: str, *answers: str, always: bool = False) -> None:
        """The next answers at `path`, one each; good ones follow, or with `always` the last one again and again."""
        assert set(answers) <= set(ANSWERS)
        self._answers[path] = [*answers] + ["always"] * always

    def asked(self, path: str, wanted: str | None) -> str:
        """Note a request; the name of the answer it gets."""
        with self._lock:
            self.requests.append((path, wanted))
            answers = self._answers.get(path, [])
            if len(answers) == 2 and answers[1] == "always":
                return answers[0]
            return answers.pop(0) if answers else "good"


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[WeightsServer]:
    """A running server, with TLS when there is a certificate (PEM with its key); stopped at the end."""
    server = WeightsServer(certificate)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def _handler(server: WeightsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        weights = server

    return Handler


class _Handler(BaseHTTPRequestHandler):
    weights: WeightsServer
    server: BaseServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        answer = self.weights.asked(self.path, wanted)
        if self.path in self.weights.redirects:
            return self._head(302, 0, {"Location": self.weights.redirects[self.path]})
        data = self.weights.files.get(self.path)
        if answer in ("busy", "broken", "missing") or data is None:
            return self._head({"busy": 503, "broken": 500}.get(answer, 404), 0)
        self._send(answer, data, self._start(answer, wanted))

    def _send(self, answer: str, data: bytes, start: int) -> None:
        if answer == "slow":
            self.weights.release.wait(0.3)
        body = {"wrong": bytes(255 - byte for byte in data)}.get(answer, data)[start:] + b"+" * answer.startswith(
            "oversize"
        )
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        if answer == "norange-206":
            headers = {"Content-Range": "bytes 0-0/7"}
        if answer == "gzip":
            headers["Content-Encoding"] = "gzip"
        self._head(206 if "Content-Range" in headers else 200, None if "nolength" in answer else len(body), headers)
        if answer in ("drip", "crawl"):
            return self._drip(body, 64 if answer == "drip" else len(body))
        self.wfile.write(body[: self._share(answer, len(body), len(data))])
        self.wfile.flush()
        if answer.startswith(("reset", "tenth")):
            return self._reset()
        if answer == "stall":
            self.weights.half_sent.set()
            self.weights.release.wait(30)

    def _share(self, answer: str, asked: int, whole: int) -> int:
        """How many of the bytes asked for are sent."""
        if answer.startswith("reset"):
            return asked * int(answer.removeprefix("reset-")) // 100
        return {"cut": asked // 2, "stall": asked // 2, "tenth": whole // 10}.get(answer, asked)

    def _drip(self, body: bytes, pieces: int) -> None:
        size = len(body) // pieces + 1
        with suppress(OSError):  # whoever asked may have gone
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                self.weights.release.wait(0.005)

    def _reset(self) -> None:
        """End the connection with a TCP reset instead of a farewell."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.weights.release.wait(0.005)  # so that what was sent can be read
        self.connection.close()

    def _start(self, answer: str, wanted: str | None) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        return int(asked[1]) if asked and not answer.startswith("norange") else 0

    def _head(self, status: int, length: int | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Tests read `requests`, nobody reads a log."""
