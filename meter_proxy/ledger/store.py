"""The connection to Redis or Valkey; with cluster.py the only module that knows the client library.

An operation takes at most 250 ms, then it has failed: the books are sent again. Errors never show a password.
"""

import asyncio
import contextlib
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError as RedisResponseError

from meter_proxy.config.urls import SERVED_SCHEMES
from meter_proxy.errors import CannotStart, StoreError
from meter_proxy.ledger.messages import REHEARSAL, Call
from meter_proxy.tasks import Patience

if TYPE_CHECKING:
    from meter_proxy.ledger.cluster import ClusterStore

OPERATION_S = 0.25
ASK_SENTINEL_S = 0.1  # each: one of them may be gone with its machine
SCANNED = 200  # names that the server looks at in one go: 0.1 ms of its time, 2 ms of ours
REPLIES = 8  # read before the loop gets its turn: 0.4 ms
CHECK_S = 5.0  # at the start: a server that is still loading its data is waited for
OLDEST_REDIS = (7, 0)
START_IT = "start it, or set redis.url"
NO_TLS = "if it does not speak TLS, write redis://"

# A hash as one text: the client library takes 10 us for each text that it reads, and a hash of a day has 24.
_READ_HASH = "return cjson.encode(redis.call('HGETALL', KEYS[1]))"
_decode_texts = msgspec.json.Decoder(list[str]).decode
_SCRIPT = files("meter_proxy.ledger").joinpath("sync.lua").read_text("utf-8")


async def check_store(url: str) -> None:
    """Find out at the start whether `url` can be used. Raises `CannotStart` with one line that says what to change."""
    try:
        store = open_store(url)
        try:
            await store.check()
        finally:
            await store.close()
    except StoreError as exc:
        raise CannotStart(str(exc)) from exc


class StoreUrl(NamedTuple):
    """A `redis+sentinel://` or `redis+cluster://` URL, taken apart.

    `[rediss|redis]+KIND://[user:password@]HOST:PORT,HOST:PORT/...[?sentinel_password=...]`; after the hosts of
    sentinels stand the primary's name and, if not 0, the database.
    """

    kind: str  # sentinel, cluster
    tls: bool
    credentials: str  # `user:password@`, quoted as in the URL, or empty
    hosts: tuple[tuple[str, int], ...]
    path: tuple[str, ...]
    parameters: Mapping[str, str]

    def of_server(self, host: str, port: int) -> str:
        """The URL of one server, with the same credentials."""
        shown = f"[{host}]" if ":" in host else host
        return f"{'rediss' if self.tls else 'redis'}://{self.credentials}{shown}:{port}"


def parse_url(url: str) -> StoreUrl | None:
    """Take apart a URL of several servers; None for one of a single server. Raises `StoreError`."""
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if kind not in ("sentinel", "cluster") or base not in ("redis", "rediss"):
        return None
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    credentials, at, hosts = netloc.rpartition("@")
    default_port = 26379 if kind == "sentinel" else 6379
    try:
        parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
        servers = tuple((part.hostname or "localhost", part.port or default_port) for part in parts)
    except ValueError:
        raise StoreError("redis.url: a host or port is broken") from None  # from None: the cause may hold the password
    found = StoreUrl(
        kind, base == "rediss", credentials + at, servers, tuple(filter(None, path.split("/"))), dict(parse_qsl(query))
    )
    if kind == "sentinel" and not 1 <= len(found.path) <= 2:
        raise StoreError("redis.url must name the primary: redis+sentinel://HOST:PORT,HOST:PORT/NAME")
    if kind == "cluster" and found.path not in ((), ("0",)):
        raise StoreError("redis.url: a cluster has database 0 only")
    return found


def open_store(url: str) -> "Store | ClusterStore":
    """The store at `redis.url`, whatever its kind. Connects when it is first used. Raises `StoreError`."""
    parsed = parse_url(url)
    if parsed is not None and parsed.kind == "cluster":
        from meter_proxy.ledger.cluster import ClusterStore

        return ClusterStore(parsed)
    return Store(url)


class Store:
    """One connection to the server at `redis.url`, made when it is first needed, and made anew when it broke.

    With `redis+sentinel://` it is one to the primary that the sentinels name at that moment.
    """

    def __init__(self, url: str) -> None:
        """Take a `redis://`, `rediss://`, `unix://` or `redis+sentinel://` URL. Raises `StoreError` for another."""
        sentinel = parse_url(url)
        self.address = _address(url) if sentinel is None else _address_of_sentinels(sentinel)
        self._sentinels: list[Redis] = []
        options: dict[str, Any] = {
            "socket_timeout": None,  # a time-out of ours bounds the whole operation
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),  # the sync retries, with fresher totals
            "decode_responses": True,
        }
        try:
            if sentinel is None:
                self._client = Redis.from_url(url, **options)
            else:
                self._client, self._sentinels = _primary(sentinel, options)
        except ValueError as exc:
            raise StoreError(f"redis.url: {exc}") from None  # from None: the cause may hold the URL
        self._has_password = bool(self._client.connection_pool.connection_kwargs.get("password"))
        self._speaks_tls = url.startswith("rediss:")
        self._sha = ""
        self._connection: Any = None

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
        with contextlib.suppress(MovedError):  # of a cluster: its place is on another server
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

    async def version(self) -> str:
        """Return what the server is: `Valkey 9.1.0`, `Redis 7.4.2`."""
        async with self._operation():
            info = await self._client.info("server")
        valkey = info.get("valkey_version")
        return f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', 'of unknown version')}"

    async def cluster_slots(self) -> list[tuple[int, int, str, int]]:
        """Return the ranges of slots of a cluster: first, last, host and port of their primary."""
        async with self._operation():
            ranges = await cast(Any, self._client).execute_command("CLUSTER SLOTS")
        return [_slot_range(entry) for entry in _entries(ranges)]

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`; an empty one for a key that is not there."""
        async with self._operation():
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.eval(_READ_HASH, 1, key)
            return [_unpacked(text) for text in await pipeline.execute()]

    async def find_keys(self, pattern: str) -> AsyncIterator[list[str]]:
        """Yield the names that fit `pattern` (of SCAN), some at a time; one may come twice. Raises `StoreError`."""
        cursor = 0
        while True:
            async with self._operation():
                cursor, names = await cast(Any, self._client).scan(cursor, match=pattern, count=SCANNED)
            yield names
            if not cursor:
                return

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
            if isinstance(exc, ReadOnlyError):  # a primary that became a replica: look for the new one
                await self._client.connection_pool.disconnect()
            raise self._translated(exc) from exc

    async def _load_script(self) -> None:
        self._sha = await self._client.script_load(_SCRIPT)

    async def _run_scripts(self, batch: Sequence[Call]) -> list[Any]:
        """One write, then the replies as they come: the client's own pipeline takes twice as long."""
        connection = await self._connected()
        replies: list[Any] = []
        try:
            await connection.send_packed_command(b"".join([_packed(self._sha, call) for call in batch]))
            for place in range(len(batch)):
                if place % REPLIES == REPLIES - 1:
                    await asyncio.sleep(0)
                replies.append(await _reply(connection))
        except BaseException:
            await connection.disconnect(nowait=True)  # the replies that are still to come must be nobody else's
            raise
        return replies

    async def _connected(self) -> Any:
        """The connection for the scripts: always the same one, made anew where it has broken."""
        if self._connection is None:
            self._connection = await cast(Any, self._client.connection_pool).get_connection()
        elif not self._connection.is_connected or await self._connection.can_read():  # nothing is due: it has ended
            await self._connection.disconnect()
            await self._connection.connect()
        return self._connection

    def _judge(self, reply: Any) -> Any | StoreError:
        if not isinstance(reply, Exception):
            return reply
        error = self._translated(reply)
        if _concerns_one_key(reply):
            return error
        raise error from reply

    async def close(self) -> None:
        """Close the connection."""
        for client in (self._client, *self._sentinels):
            await client.aclose()

    def __repr__(self) -> str:
        return f"<Store {self.address}>"


def _packed(sha: str, call: Call) -> bytes:
    """The command in Redis' protocol."""
    words = [b"EVALSHA", sha.encode(), b"%d" % len(call.keys)]
    words += [key.encode() for key in call.keys]
    words += [arg.encode() if isinstance(arg, str) else b"%d" % arg for arg in call.args]
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


async def _reply(connection: Any) -> Any:
    """The next reply; an error that is one is returned. Whatever else happens ends the connection, and is raised."""
    try:
        return await connection.read_response()
    except RedisResponseError as exc:
        return exc


def _unpacked(text: str) -> dict[str, str]:
    """The fields of a hash that `_READ_HASH` has read; to Lua's mind an empty list is an object."""
    parts = _decode_texts(text) if text != "{}" else []
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _cause(exc: Exception) -> BaseException:
    """Return the system's own error, where the client library has wrapped one."""
    return exc.__cause__ or exc.__context__ or exc


def _is_tls_error(exc: Exception) -> bool:
    cause = _cause(exc)
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError)


def _reason(exc: Exception) -> str:
    """Return why there is no connection, in words; the client library's own text repeats the address."""
    if isinstance(exc, MasterNotFoundError):  # its text shows the whole client
        return "no sentinel that answers knows it"
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
    if parts.scheme == "unix":
        return f"Redis at {parts.path}"
    if parts.scheme in ("redis", "rediss"):
        return f"Redis at {f'[{host}]' if ':' in host else host}:{port}"
    raise StoreError(f"redis.url must be `embedded`, or begin with {SERVED_SCHEMES}")


def _primary(url: StoreUrl, options: dict[str, Any]) -> tuple[Redis, list[Redis]]:
    """A client that asks the sentinels for the primary each time it connects; and those to the sentinels."""
    user, _, password = url.credentials.rstrip("@").partition(":")
    sentinels: dict[str, Any] = {"socket_timeout": ASK_SENTINEL_S, "socket_connect_timeout": ASK_SENTINEL_S}
    if "sentinel_password" in url.parameters:
        sentinels["password"] = url.parameters["sentinel_password"]
        sentinels["username"] = url.parameters.get("sentinel_username")
    if url.tls:
        options = {**options, "ssl": True}
        sentinels["ssl"] = True
    found: Any = Sentinel(list(url.hosts), sentinel_kwargs=sentinels)  # type: ignore[no-untyped-call]
    credentials = {"username": unquote(user) or None, "password": unquote(password) or None}
    database = int(url.path[1]) if len(url.path) > 1 else 0
    return found.master_for(url.path[0], db=database, **credentials, **options), found.sentinels


def _address_of_sentinels(url: StoreUrl) -> str:
    if url.kind != "sentinel":
        raise StoreError("redis.url: a cluster is not one server")
    return f"Redis {url.path[0]} of the sentinels at {','.join(f'{host}:{port}' for host, port in url.hosts)}"


def _entries(ranges: Any) -> list[Any]:
    """The client library gives a mapping or a list, by its version and protocol."""
    if isinstance(ranges, dict):
        return [[*slots, place["primary"]] for slots, place in ranges.items()]
    return list(ranges)


def _slot_range(entry: Any) -> tuple[int, int, str, int]:
    first, last, primary = entry[0], entry[1], entry[2]
    host = primary[0].decode() if isinstance(primary[0], bytes) else primary[0]
    return int(first), int(last), host or "", int(primary[1])
