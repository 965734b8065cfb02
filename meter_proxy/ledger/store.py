"""The connection to Redis or Valkey; the only module that knows the client library.

An operation takes at most 250 ms, then it has failed: the books are sent again. Errors never show a password.
"""

import asyncio
import contextlib
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError as RedisResponseError

from meter_proxy.errors import CannotStart, StoreError
from meter_proxy.ledger.messages import REHEARSAL, Call
from meter_proxy.tasks import Patience

OPERATION_S = 0.25
CHECK_S = 5.0  # at the start: a server that is still loading its data is waited for
OLDEST_REDIS = (7, 0)
START_IT = "start it, or set redis.url"
NO_TLS = "if it does not speak TLS, write redis://"

_SCRIPT = files("meter_proxy.ledger").joinpath("sync.lua").read_text("utf-8")


async def check_store(url: str) -> None:
    """Find out at the start whether `url` can be used. Raises `CannotStart` with one line that says what to change."""
    try:
        store = Store(url)
        try:
            await store.check()
        finally:
            await store.close()
    except StoreError as exc:
        raise CannotStart(str(exc)) from exc


class Store:
    """One connection to the server at `redis.url`, made when it is first needed, and made anew when it broke."""

    def __init__(self, url: str) -> None:
        """Take a `redis://`, `rediss://` or `unix://` URL. Raises `StoreError` for another."""
        self.address = _address(url)
        try:
            self._client = Redis.from_url(
                url,
                socket_timeout=None,  # asyncio.timeout bounds the whole operation
                socket_connect_timeout=None,
                retry=Retry(NoBackoff(), 0),  # the sync retries, with fresher totals
                decode_responses=True,
            )
        except ValueError as exc:
            raise StoreError(f"redis.url: {exc}") from None  # from None: the cause may hold the URL
        self._has_password = bool(self._client.connection_pool.connection_kwargs.get("password"))
        self._speaks_tls = url.startswith("rediss:")
        self._sha = ""

    async def check(self) -> None:
        """Make sure that the server is new enough, keeps what it is given, and lets us in. Raises `StoreError`."""
        try:
            async with asyncio.timeout(CHECK_S):
                info = await self._info_when_loaded()
                self._check_version(info)
                self._check_role(info)
                await self._check_policy(info)
                await self._rehearse()
        except StoreError:
            raise
        except TimeoutError as exc:
            hint = f"; {NO_TLS}" if self._speaks_tls else ""  # a server without TLS waits for the end of a line
            raise StoreError(f"{self.address} did not answer within {CHECK_S:g} s{hint}") from exc
        except RedisConnectionError as exc:
            raise self._translated(exc, advice=f"; {NO_TLS if _is_tls_error(exc) else START_IT}") from exc
        except (RedisError, OSError) as exc:
            raise self._translated(exc) from exc

    def _translated(self, exc: Exception, *, advice: str = "") -> StoreError:
        """Say what the client library's error means, in one line with the address once."""
        match exc:
            case AuthenticationError() if not self._has_password:
                return StoreError(f"redis.url has no password, and {self.address} wants one")
            case AuthenticationError():
                return StoreError(f"{self.address} refused the user name or password in redis.url")
            case NoPermissionError():
                return StoreError(f"{self.address}: the user in redis.url lacks a permission: {exc}")
            case RedisResponseError():
                return StoreError(f"{self.address} refused: {exc}")
        return StoreError(f"cannot reach {self.address}: {_reason(exc)}{advice}")

    async def _info_when_loaded(self) -> dict[str, Any]:
        while True:
            try:
                return await self._client.info()
            except BusyLoadingError:
                await asyncio.sleep(0.05)

    def _check_version(self, info: dict[str, Any]) -> None:
        if "valkey_version" in info or info.get("server_name") == "valkey":
            return
        version = str(info.get("redis_version", ""))
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < OLDEST_REDIS:
            raise StoreError(
                f"{self.address} is Redis {version or 'of unknown version'}: 7.0 or later, or Valkey, is needed"
            )

    def _check_role(self, info: dict[str, Any]) -> None:
        if info.get("role", "master") != "master":
            raise StoreError(f"{self.address} is a replica, which cannot be written: name its primary in redis.url")

    async def _check_policy(self, info: dict[str, Any]) -> None:
        try:
            answer = await self._client.config_get("maxmemory-policy")
        except RedisResponseError:  # CONFIG is forbidden or renamed: INFO tells it, too
            answer = {}
        policy = answer.get("maxmemory-policy") or info.get("maxmemory_policy")
        if policy != "noeviction":
            raise StoreError(
                f"{self.address} has maxmemory-policy {policy or 'unknown'}, which would drop counters: "
                "set maxmemory-policy to noeviction"
            )

    async def _rehearse(self) -> None:
        """Run the script for nobody: it writes nothing, but shows a missing permission or full memory."""
        await self._load_script()
        await cast(Any, self._client.evalsha(self._sha, len(REHEARSAL.keys), *REHEARSAL.keys, *REHEARSAL.args))

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        """Run `sync.lua` once per call, in one round trip. See `sync.SyncStore`."""
        async with self._operation():
            if not self._sha:
                await self._load_script()
            replies = await self._run_scripts(batch)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                await self._load_script()  # the server was restarted, or SCRIPT FLUSH
                replies = await self._run_scripts(batch)
        return [self._judge(reply) for reply in replies]

    async def now(self) -> float:
        """Return the server's clock in Unix seconds."""
        async with self._operation():
            seconds, microseconds = await cast(Any, self._client.time())
        return float(seconds + microseconds / 1e6)

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`; an empty one for a key that is not there."""
        async with self._operation():
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.hgetall(key)
            return cast(list[dict[str, str]], await pipeline.execute())

    @contextlib.asynccontextmanager
    async def _operation(self) -> AsyncIterator[None]:
        """Bound an operation in time, and say in our words what went wrong."""
        try:
            async with asyncio.timeout(None) as timeout:
                patience = Patience(OPERATION_S, lambda: timeout.reschedule(0.0))
                try:
                    yield
                finally:
                    patience.cancel()
        except TimeoutError as exc:
            raise StoreError(f"{self.address} did not answer within {OPERATION_S * 1000:.0f} ms") from exc
        except (RedisError, OSError) as exc:
            raise self._translated(exc) from exc

    async def _load_script(self) -> None:
        self._sha = await self._client.script_load(_SCRIPT)

    async def _run_scripts(self, batch: Sequence[Call]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in batch:
            pipeline.evalsha(self._sha, len(call.keys), *call.keys, *call.args)
        return await pipeline.execute(raise_on_error=False)

    def _judge(self, reply: Any) -> Any | StoreError:
        if not isinstance(reply, Exception):
            return reply
        error = self._translated(reply)
        if _concerns_one_key(reply):
            return error
        raise error from reply

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    def __repr__(self) -> str:
        return f"<Store {self.address}>"


def _cause(exc: Exception) -> BaseException:
    """Return the system's own error, where the client library has wrapped one."""
    return exc.__cause__ or exc.__context__ or exc


def _is_tls_error(exc: Exception) -> bool:
    cause = _cause(exc)
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError)


def _reason(exc: Exception) -> str:
    """Return why there is no connection, in words; the client library's own text repeats the address."""
    match cause := _cause(exc):
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is not trusted, {cause.verify_message}"
        case ssl.SSLError():
            return f"TLS failed, {(cause.reason or 'no reason given').replace('_', ' ').lower()}"
        case socket.gaierror():
            return str(cause.strerror).lower()
        case OSError() if number := re.search(r"\[Errno (\d+)\]", str(cause)):  # the first, if several were tried
            return os.strerror(int(number[1])).lower()
        case ConnectionResetError():
            return "connection reset"
    return str(exc).rstrip(".")


def _concerns_one_key(reply: Exception) -> bool:
    """Tell a hash that holds something else (WRONGTYPE, or plain ERR, which the client strips) from a sick server."""
    code = str(reply).split(" ", 1)[0]
    return type(reply) is RedisResponseError and (code == "WRONGTYPE" or not code.isupper())


def _address(url: str) -> str:
    """Return what may be shown of `url`. Raises `StoreError` for a scheme that is not supported."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        raise StoreError("redis.url is not a URL") from None  # from None: the cause may hold the password
    if parts.scheme in ("redis+sentinel", "redis+cluster"):
        raise StoreError(f"redis.url: {parts.scheme}:// comes with a later version; use redis://, rediss:// or unix://")
    if parts.scheme == "unix":
        return f"Redis at {parts.path}"
    if parts.scheme in ("redis", "rediss"):
        return f"Redis at {f'[{host}]' if ':' in host else host}:{port}"
    raise StoreError("redis.url must begin with redis://, rediss:// or unix://, or be `embedded`")
