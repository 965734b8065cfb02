"""How commands ask a running proxy: small GETs to its admin listener.

The token stands in the environment (`METER_PROXY_ADMIN_TOKEN`), never on the command line, where others could read it.
No proxy from the environment is used: the admin listener is on this machine, or in this network.
"""

import http.client
import os
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

import msgspec
import typer

from meter_proxy.errors import MeterProxyError

TOKEN_VARIABLE = "METER_PROXY_ADMIN_TOKEN"
MAX_ANSWER_BYTES = 64 * 1024**2  # 100,000 records are ~70 MB; nothing that is asked here is near it


class URL(str):
    """What people type as one: `HOST:PORT` alone is good, too. (Its name stands in the help.)"""

    __slots__ = ()

    def __new__(cls, text: str) -> "URL":
        return super().__new__(cls, (text if "://" in text else f"http://{text}").rstrip("/"))


DEFAULT_ADMIN_URL = URL("http://127.0.0.1:9090")
AdminUrlArgument: TypeAlias = Annotated[
    URL,
    typer.Argument(metavar="ADMIN_URL", parser=URL, help=f"The admin listener; its admin_token from {TOKEN_VARIABLE}."),
]


class AdminError(MeterProxyError):
    """The admin listener cannot be reached, or answers with what cannot be used. `status`: of its answer, if any."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """The admin listener at `url`. Blocks for at most about `timeout_s` per request."""

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 2.0) -> None:
        """Raises `typer.BadParameter` for what is no http(s) URL."""
        self.url = url
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise typer.BadParameter(_EXPECTED, param_hint="ADMIN_URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise typer.BadParameter(_EXPECTED, param_hint="ADMIN_URL")
        self._host, self._port, self._path = parts.hostname, port, parts.path
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._headers = {"Accept": "application/json"}
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s = timeout_s

    def get(self, path: str) -> tuple[int, bytes]:
        """GET `path`: status and body. Raises `AdminError` when there is no answer."""
        connection = self._kind(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("GET", self._path + path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_ANSWER_BYTES)
        except TimeoutError as exc:
            raise AdminError(f"{self.url} did not answer within {self._timeout_s:g} s") from exc
        except OSError as exc:
            raise AdminError(f"cannot reach {self.url}: {exc.strerror or exc}; does `meter-proxy serve` run?") from exc
        except (http.client.HTTPException, ValueError) as exc:
            raise AdminError(f"{self.url} does not answer in HTTP: is it the admin listener?") from exc
        finally:
            connection.close()

    def get_json(self, path: str) -> dict[str, Any]:
        """GET a JSON object. Raises `AdminError`, with the `status`, when the answer is another."""
        status, body = self.get(path)
        if status == 401:
            raise AdminError(f"{self.url} wants the admin_token: set {TOKEN_VARIABLE}", status=status)
        if status != 200:
            raise AdminError(f"{self.url}{path} answered {status}{_reason(body)}", status=status)
        document = _object(body)
        if document is None:
            raise AdminError(f"{self.url}{path} did not answer in JSON: is it the admin listener?", status=status)
        return document


_EXPECTED = f"expected a URL such as {DEFAULT_ADMIN_URL}"


def _reason(body: bytes) -> str:
    error = (_object(body) or {}).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return f": {message}" if isinstance(message, str) else ""


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
