"""A faulty storage: a proxy on the loopback address in front of an emulator of tests/emulators.py.

It forwards requests and injects faults into some of them by a seeded schedule, see `KINDS`.
"""

import collections
import contextlib
import http.client
import http.server
import random
import re
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

# The faults: response 503; slow response; request cut off before the storage has all of it; request applied
# but the response lost; request applied and the response cut in half.
KINDS = ("unavailable", "slow", "torn", "lost", "cut")
# A client without permission: response 403.
REFUSED = "refused"
SLOW_SECONDS = 1.0


class Schedule:
    """Chooses the requests with faults.

    rates: {regex: n} for "METHOD /path": of the requests whose first matching regex it is, one in n has a
    fault, cycling through `kinds` in an order that depends on the seed. Never two in a row, so that a retry
    succeeds, unless n is 1.
    """

    def __init__(self, seed: int, rates: Mapping[str, int], kinds: Sequence[str] = KINDS):
        self._kinds = {
            pattern: _turns(random.Random(f"{seed} {pattern}"), n, kinds) for pattern, n in rates.items()
        }
        self._lock = threading.Lock()
        # How often each kind was applied to the requests of a pattern: {(pattern, kind): count}.
        self.applied: collections.Counter[tuple[str, str]] = collections.Counter()
        # {path: answer} of uploads in several parts that are complete.
        self.finished: dict[str, tuple] = {}

    def next(self, method: str, path: str) -> str:
        """One of the kinds, or "" for no fault."""
        request = f"{method} {urllib.parse.unquote(path)}"
        pattern = next((each for each in self._kinds if re.search(each, request)), None)
        if pattern is None:
            return ""
        with self._lock:
            kind = next(self._kinds[pattern])
            if kind:
                self.applied[pattern, kind] += 1
        return kind


def _turns(rng, n, kinds):
    left: list[str] = []
    while True:
        left = left or rng.sample(kinds, len(kinds))
        place = rng.randrange(1, n) if n > 1 else 0
        yield from (left.pop() if i == place else "" for i in range(n))


@contextlib.contextmanager
def start(address: str, schedule: Schedule) -> Iterator[str]:
    """Starts a proxy in front of "http://localhost:PORT". Yields its own address."""
    netloc = urllib.parse.urlsplit(address).netloc

    class Handler(_Handler):
        storage = netloc

    Handler.schedule = schedule
    server = _Server(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Prints errors, except for clients that were killed or gave up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: str
    schedule: Schedule

    def do_GET(self):
        kind = self.schedule.next(self.command, self.path)
        body = self._body(half=kind == "torn")
        if kind in ("unavailable", REFUSED):
            return self._answer(503 if kind == "unavailable" else 403, [("Content-Length", "0")], b"")
        if kind == "torn":
            return self._hang_up()
        if kind == "slow":
            time.sleep(SLOW_SECONDS)
        status, headers, content = self._carried_out(body)
        if kind == "lost":
            return self._hang_up()
        self._answer(status, headers, content[: len(content) // 2] if kind == "cut" else content)
        if kind == "cut":
            self._hang_up()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def log_message(self, *_):
        """Logs nothing: every request would be a line."""

    def _carried_out(self, body):
        """The storage's answer. To the last part of an upload, sent again, it is the same: GCS remembers
        uploads that are complete; the emulator has forgotten them, and answers with 404."""
        answer, finished = self._forward(body), self.schedule.finished
        if "upload_id=" in self.path and answer[0] == 200:
            finished[self.path] = answer
        return finished.get(self.path, answer) if answer[0] == 404 else answer

    def _body(self, half):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size // 2 if half else size)

    def _chunk(self):
        content = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return content

    def _forward(self, body):
        connection = http.client.HTTPConnection(self.storage, timeout=60)
        try:
            kept = {k: v for k, v in self.headers.items() if k.lower() not in _OF_THE_CONNECTION}
            connection.request(self.command, self.path, body, kept | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            content = answer.read()
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in _OF_THE_CONNECTION]
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            return answer.status, [*headers, ("Content-Length", size or "0")], content
        finally:
            connection.close()

    def _answer(self, status, headers, content):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may have gone
            self.connection.shutdown(socket.SHUT_RDWR)


_OF_THE_CONNECTION = ("connection", "content-length", "transfer-encoding", "keep-alive", "date", "server")
