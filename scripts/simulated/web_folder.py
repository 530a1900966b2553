"""Web server of a publisher's folder that fails on demand: it drops, stalls, corrupts, repeats and redirects."""

import http.server
import ssl
import threading
from pathlib import Path
from urllib.parse import unquote

FAULTS = ("drop", "cut", "stall", "corrupt", "redirect", "error", "repeat", "endless", "garbage", "nowhere")


class Web:
    """Serves `folder` at `url`. `fault`: what befalls each answer, or a function that says so for a path."""

    def __init__(self, folder, *, context=None, stall_s=None, methods=("GET",), needs=None):
        self.folder, self.fault, self.stall_s, self.methods, self.needs = Path(folder), None, stall_s, methods, needs
        self.asked, self.given, self.lock, self.elsewhere = [], {}, threading.Lock(), "https://elsewhere.example/"
        self.tag, self.conditions, self.takes_conditions = None, [], True
        """ETag of every file instead of one by its content; the If-None-Match of each request; False: 400 to such a request."""
        self.ranges = "good"
        """Answer to a request for the rest of a file: the rest, `other part`, or `status_400`."""
        self.old = {}
        """Old contents that are repeated: of a path, as it was when `remember` was called."""
        self.over = threading.Event()
        """An answer that stalls comes then, or after `stall_s`."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' * (context is not None)}://localhost:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def remember(self):
        self.old = {
            str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()
        }

    def paths(self, status=None):
        with self.lock:
            return [path for path, code in self.asked if status in {None, code}]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    web = None

    def log_message(self, *_):
        pass

    def _say(self, status, body=b"", **headers):
        with self.web.lock:
            self.web.asked.append((self.path, status))
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def do_GET(self):
        web, path = self.web, unquote(self.path).lstrip("/")
        fault = web.fault(path) if callable(web.fault) else web.fault
        if web.needs is not None and self.headers.get("Authorization") != web.needs:
            self._say(401)
        elif not self._is_condition_good():
            self._say(400)
        elif fault in {
            "drop",
            "redirect",
            "error",
            "endless",
            "garbage",
            "nowhere",
            "continue",
            "drip",
            "flood",
            "trickle",
        }:
            getattr(self, f"_{fault}")(path)
        elif path.startswith("moved/"):
            self._say(302, Location=f"{web.url}{path.removeprefix('moved/')}")
        elif path in web.old and fault == "repeat":
            self._file(web.old[path])
        elif (web.folder / path).is_file():
            content = (web.folder / path).read_bytes()
            if fault == "corrupt":
                at = len(content) // 2
                content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            in_the_middle = fault == "stall" and path.endswith(".zst")  # of an answer; before it, of another file
            if fault == "stall" and not in_the_middle:
                web.over.wait(web.stall_s)
            self._file(content, cut=fault == "cut" or in_the_middle)
            if in_the_middle:
                web.over.wait(web.stall_s)
        else:
            self._say(404)

    def _drop(self, _):
        self.close_connection = True

    def _redirect(self, path):
        self._say(302, Location=f"{self.web.elsewhere}{path}")

    def _nowhere(self, _):
        self._say(302, Location="http://[::1/")

    def _error(self, _):
        self._say(503)

    def _endless(self, _):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def _garbage(self, _):
        self.wfile.write(b"\x16\x03\x01 nonsense\r\n\r\n")
        self.close_connection = True

    def _continue(self, _):
        """Announce an answer for ever."""
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    def _drip(self, _):
        """Send one header after the other for ever, slowly."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.web.over.wait(0.02):
            self.wfile.write(b"x")

    def _trickle(self, path):
        """Send the file a byte at a time."""
        content = (self.web.folder / path).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for at in range(len(content)):
            self.wfile.write(content[at : at + 1])
            if self.web.over.wait(0.02):
                break

    def _flood(self, path):
        """Redirect to the file, in an answer whose body never ends."""
        self.send_response(302)
        self.send_header("Location", f"{self.web.url}{path}")
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def _is_condition_good(self):
        """False as a strict server has it, such as nginx: a header that is too long or broken into lines is a bad request."""
        condition = self.headers.get("If-None-Match")
        if condition is not None:
            with self.web.lock:
                self.web.conditions.append(condition)
        return condition is None or (self.web.takes_conditions and len(condition) < 8192 and "\n" not in condition)

    def _file(self, content, *, cut=False):
        etag = self.web.tag or f'"{hash(content) & 0xFFFFFFFF:x}"'
        if self.headers.get("If-None-Match") == etag:
            self._say(304, ETag=etag)
            return
        begin, status, more = 0, 200, {}
        if (asked := self.headers.get("Range")) is not None:
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) - (self.web.ranges == "other part")
            if self.web.ranges == "status_400":
                self._say(400)
                return
            if begin >= len(content):
                self._say(416)
                return
            status, more = 206, {"Content_Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        body = content[begin:]
        self._say(
            status, body[: max(1, len(body) // 2)] if cut else body, ETag=etag, Content_Length=str(len(body)), **more
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command not in self.web.methods:
            self._say(405)
            return
        with self.web.lock:
            self.web.given[unquote(self.path).lstrip("/")] = body
        self._say(201)

    do_PUT = do_POST  # noqa: N815 - as the class of the library calls it


def tls(authority, *names):
    """A context for a server with a certificate for these names, that asks nobody for theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue(*names).configure_cert(context)
    return context
