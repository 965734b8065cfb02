"""Client request -> Call: who asks, which operation, which model, with what body; all limits on input.

Order matters: the key is checked before a byte of the body is read, sizes before memory is spent,
the body's grammar before anything is believed. Every refusal is a `ClientError` that echoes nothing.
"""

import asyncio
from typing import NamedTuple

from aiohttp import web

from meter_proxy.config.lookup import KeyRing, ModelTable, ResolvedModel
from meter_proxy.config.schema import Config, Key
from meter_proxy.errors import ClientError
from meter_proxy.gateway.client import ClientGone
from meter_proxy.gateway.headers import Forwarded
from meter_proxy.gateway.routes import Route
from meter_proxy.metering.request import Asked, parse_body
from meter_proxy.usage import Operation

ANONYMOUS = "anonymous"  # the key id of every caller where no keys are configured
UNAUTHORIZED_HEADERS = (("www-authenticate", "Bearer"), ("x-should-retry", "false"))


class Caller(NamedTuple):
    """Who asks. `key` is None where no keys are configured."""

    key: Key | None
    key_id: str
    account: str


class Call(NamedTuple):
    """What was asked, understood and allowed."""

    caller: Caller
    operation: Operation
    path: str  # below the upstream's base_url
    asked: Asked
    model: ResolvedModel
    forwarded: Forwarded  # of the client's headers what goes on
    client_request_id: str | None


class Inbound:
    """Reads requests for one configuration."""

    def __init__(self, config: Config) -> None:
        self._keys = KeyRing(config) if config.keys else None
        self.models = ModelTable(config)
        self._max_body_bytes = config.limits.max_body_bytes
        self._stall_s = config.limits.client_stall_s

    def identify(self, request: web.BaseRequest, now: float) -> Caller:
        """Who asks, from headers alone. 401 for a key that is missing, unknown, disabled or expired."""
        secret = self._secret(request) if self._keys is not None else None
        caller = self.caller(secret, now)
        if caller is None:
            raise ClientError(
                401,
                "invalid_api_key",
                "Incorrect or missing API key. Send it as `Authorization: Bearer KEY`.",
                headers=UNAUTHORIZED_HEADERS,
            )
        return caller

    def caller(self, secret: bytes | None, now: float) -> Caller | None:
        """Whose secret this is; None if nobody's, or of a key that is disabled or expired. Without keys: anybody's."""
        if self._keys is None:
            return Caller(None, ANONYMOUS, ANONYMOUS)
        key = self._keys.find(secret, now) if secret else None
        return Caller(key, key.id, key.account_id) if key is not None else None

    def _secret(self, request: web.BaseRequest) -> bytes | None:
        found: set[str] = set()
        for value in request.headers.getall("Authorization", ()):
            scheme, _, token = value.strip().partition(" ")
            found.add(token.strip() if scheme.lower() == "bearer" else "")
        for name in ("api-key", "x-api-key"):
            found.update(value.strip() for value in request.headers.getall(name, ()))
        found.discard("")
        if len(found) > 1:
            raise ClientError(400, "conflicting_api_keys", "The request carries two different API keys. Send one.")
        return found.pop().encode("utf-8", "surrogateescape") if found else None

    def check_head(self, request: web.BaseRequest) -> None:
        """What can be refused before the body is read: type, coding, size."""
        content_type = request.headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise ClientError(
                415, "unsupported_media_type", "The body must be JSON: send it with `Content-Type: application/json`."
            )
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise ClientError(415, "unsupported_content_encoding", "Send the request body without Content-Encoding.")
        if (request.content_length or 0) > self._max_body_bytes:
            raise self._too_large()

    async def read_body(self, request: web.BaseRequest) -> bytes:
        """The whole body, bounded in size and in time. Raises ClientGone if the client leaves meanwhile."""
        pieces: list[bytes] = []
        size = 0
        content = request.content
        try:
            while not content.at_eof():
                async with asyncio.timeout(self._stall_s):
                    piece = await content.readany()
                size += len(piece)
                if size > self._max_body_bytes:
                    raise self._too_large()
                pieces.append(piece)
        except TimeoutError as exc:
            raise ClientError(408, "request_timeout", "The request body did not arrive in time.") from exc
        except (ConnectionError, web.PayloadAccessError) as exc:
            raise ClientGone from exc
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> ClientError:
        return ClientError(
            413, "request_too_large", f"The request body is larger than the {self._max_body_bytes} bytes allowed here."
        )

    def parse(self, route: Route, body: bytes) -> Asked:
        """The few fields we need; 400 for whatever is not strict JSON or has them wrong."""
        return parse_body(body, route.operation)

    def allow(self, caller: Caller, asked: Asked) -> ResolvedModel:
        """The model's way upstream. 404 if nobody, or not this caller, may ask for it."""
        model = self.models.resolve(asked.model, caller.key)
        if model is None:
            raise ClientError(
                404,
                "model_not_found",
                "The model does not exist or you do not have access to it. See GET /models.",
                param="model",
            )
        return model
