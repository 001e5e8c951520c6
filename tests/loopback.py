"""A server on this machine that stands for a service."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(reply: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, Any] | None]) -> Iterator[str]:
    """The address of a server. `reply(request, body)` returns the status and the content of the answer to each POST,
    as bytes or as a value for JSON, or None if it has answered by itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            found = reply(self, self.rfile.read(int(self.headers["Content-Length"])))
            if found is not None:
                status, content = found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
