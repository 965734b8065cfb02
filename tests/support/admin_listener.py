"""A small admin listener with the agreed shapes of `/api/live` and `/api/quotas`, and whatever values a test wants.

    with AdminListener() as admin:
        admin.answers["/api/live"] = (200, live(streams=[stream()]))

It knows the path of a request and its Authorization header, nothing else.
"""

import http.server
import json
import threading
from types import TracebackType
from typing import Any, Self

Document = dict[str, Any]


def stream(number: int = 0, **members: Any) -> Document:
    """An entry of `streams`."""
    return {
        "id": f"chatcmpl-{number:08x}", "key": "alice", "account": "acme", "model": "gpt-4o", "operation": "chat",
        "stream": True, "started": "2026-11-28T12:00:00.000Z", "duration_ms": 4000 + number, "input_tokens": 120,
        "output_tokens": 200, **members,
    }  # fmt: skip


def live(streams: list[Document] | None = None, **members: Any) -> Document:
    """What `/api/live` answers."""
    streams = streams or []
    return {
        "ready": True,
        "uptime_s": 11_234.5,
        "workers": [{"index": index, "pid": 100 + index, "state": "serving", "restarts": 0} for index in range(2)],
        "inflight": {"gpt-4o": len(streams)},
        "streams": streams,
        "streams_total": len(streams),
        "rates": {"requests_per_s": 3.2, "input_tokens_per_s": 1204.0, "output_tokens_per_s": 812.4},
        **members,
    }


def quota(**members: Any) -> Document:
    """An entry of `/api/quotas`."""
    return {
        "key": "alice", "rule": "tokens-day", "unit": "tokens", "per": "day", "limit": 200_000, "used": 124_000,
        "reserved": 512, "remaining": 75_488, "resets_at": "2026-11-29T00:00:00Z", "warn_at": 0.8, "models": None,
        **members,
    }  # fmt: skip


class AdminListener:
    """Answers from `answers`: path, with its query or without -> status and document; else 404 in our error's shape."""

    def __init__(self, token: str | None = None) -> None:
        self.answers: dict[str, tuple[int, Document]] = {}
        self.asked: list[str] = []  # paths with their queries
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.asked.append(self.path)
                path = self.path.partition("?")[0]
                missing: tuple[int, Document] = (404, {"error": {"message": "Unknown request URL."}})
                status, document = listener.answers.get(self.path) or listener.answers.get(path, missing)
                if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                    status, document = 401, {"error": {"message": "Send the admin_token."}}
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
