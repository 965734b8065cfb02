"""HTTP/1.1 responses of an upstream, read strictly and without I/O (RFC 9112).

A response that could be read in two ways is refused, never repaired: Content-Length beside
Transfer-Encoding, two lengths, a folded line, a size that is not plain hex. `ChunkedReader` says
of each read whether it may go on to the client as it came ("plain": whole chunks, no extensions).
"""

import re
from enum import Enum

MAX_HEAD_BYTES = 65_536  # as aiohttp's server side; real heads are under 4 KiB
MAX_SIZE_LINE_BYTES = 1_024  # a chunk's size with its extensions

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_DIGITS = frozenset(b"0123456789")
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110 §5.5; aiohttp refuses to send them on


class BadResponse(Exception):
    """The upstream does not speak HTTP/1.1 that has one meaning. The connection is of no more use."""


class Framing(Enum):
    """How the end of a response body is known."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseHead:
    """Status line and headers, never changed. `headers` keeps order and spelling; hop-by-hop ones are still in it.

    `reply` is what `headers.py` has made of it: heads are alike for a while (`Heads`), and so is their reply.
    """

    __slots__ = ("_values", "framing", "headers", "keep_alive", "length", "reason", "reply", "status")

    def __init__(
        self,
        status: int,
        reason: str,
        headers: tuple[tuple[str, str], ...],
        framing: Framing,
        length: int,
        keep_alive: bool,
    ) -> None:
        """`length`: of the body, in bytes; 0 unless `framing` is LENGTH."""
        self.status = status
        self.reason = reason
        self.headers = headers
        self.framing = framing
        self.length = length
        self.keep_alive = keep_alive
        self.reply: object = None
        self._values = {name.lower(): value for name, value in reversed(headers)}

    def get(self, name: str) -> str:
        """The value of the first header `name` (lower case), "" if absent."""
        return self._values.get(name, "")


class Heads:
    """Reads response heads; those that are the same to the byte only once.

    At any rate worth a thought, heads differ by the second of their Date and by a length. Bounded.
    """

    MOST = 256
    LONGEST_BYTES = 1_024

    def __init__(self) -> None:
        self._read: dict[bytes, ResponseHead] = {}

    def read(self, block: bytes) -> ResponseHead:
        """What `parse_head` says of it. Raises BadResponse."""
        head = self._read.get(block)
        if head is None:
            head = parse_head(block)
            if len(block) <= self.LONGEST_BYTES:
                if len(self._read) >= self.MOST:
                    self._read.clear()
                self._read[block] = head
        return head


def parse_head(block: bytes) -> ResponseHead:
    """Read a response head without its final blank line. Answers to POST and GET only, never to HEAD."""
    lines = block.split(b"\r\n")
    status, reason, minor = _status_line(lines[0])
    headers: list[tuple[str, str]] = []
    length: int | None = None
    chunked = False
    connection = ""
    for line in lines[1:]:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or not raw_name or not _TOKEN.issuperset(raw_name):
            raise BadResponse("a header line without a valid name")
        raw_value = raw_value.strip(b" \t")
        if _CONTROLS.search(raw_value):
            raise BadResponse("a control character in a header value")
        name, value = raw_name.decode("ascii"), _text(raw_value)
        lower = name.lower()
        if lower == "content-length":
            if not raw_value or not _DIGITS.issuperset(raw_value):
                raise BadResponse("a Content-Length that is not a number")
            if length is not None and length != int(raw_value):
                raise BadResponse("two different Content-Lengths")
            length = int(raw_value)
        elif lower == "transfer-encoding":
            if chunked or value.lower() != "chunked":
                raise BadResponse("a Transfer-Encoding other than chunked")
            chunked = True
        elif lower == "connection":
            connection += "," + value.lower()
        headers.append((name, value))
    if chunked and length is not None:
        raise BadResponse("both Content-Length and Transfer-Encoding")
    if chunked and minor == 0:
        raise BadResponse("Transfer-Encoding in HTTP/1.0")
    options = {option.strip() for option in connection.split(",")}
    keep_alive = "close" not in options if minor else "keep-alive" in options
    if status < 200 or status in (204, 304):
        framing = Framing.NONE
    elif chunked:
        framing = Framing.CHUNKED
    elif length is not None:
        framing = Framing.LENGTH if length else Framing.NONE
    else:
        framing, keep_alive = Framing.CLOSE, False
    return ResponseHead(status, reason, tuple(headers), framing, length or 0, keep_alive)


def _status_line(line: bytes) -> tuple[int, str, int]:
    version, _, rest = line.partition(b" ")
    code, _, reason = rest.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(code) != 3 or not _DIGITS.issuperset(code) or code < b"100":
        raise BadResponse("not an HTTP/1.1 status line")
    if _CONTROLS.search(reason):
        raise BadResponse("a control character in the reason phrase")
    return int(code), _text(reason), 1 if version == b"HTTP/1.1" else 0


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


class ChunkedReader:
    """Takes a chunked body apart, cut anywhere.

    After each `feed`, `ended` tells whether the final chunk and its trailers were read and
    `surplus` how many bytes of that read lie behind the end (they belong to no response).
    """

    __slots__ = ("_in_trailers", "_line", "_need", "_trailer_bytes", "at_boundary", "ended", "surplus")

    def __init__(self) -> None:
        self._need = 0  # bytes still to come of the current chunk, its CRLF included
        self._line = b""  # an incomplete size or trailer line
        self._in_trailers = False
        self._trailer_bytes = 0
        self.at_boundary = True  # the next byte begins a chunk
        self.ended = False
        self.surplus = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """-> (payload, framed). `framed` is the part of `data` that is exactly the payload in whole plain
        chunks, fit to be sent on as it is; None when the payload must be framed anew."""
        plain = not self._need and not self._line
        if self._line:
            data, self._line = self._line + data, b""
        pieces: list[bytes] = []
        pos, size = 0, len(data)
        framed_end = 0
        while pos < size and not self.ended:
            if self._need:
                pos = self._take(data, pos, pieces)
                framed_end = pos
                continue
            end = data.find(b"\r\n", pos)
            if end >= 0 and not self._in_trailers:
                stop = end + 2 + SIZES[data[pos:end]]
                if stop > end + 2 and data.startswith(b"\r\n", stop):  # nearly all: a whole plain chunk
                    pieces.append(data[end + 2 : stop])
                    pos = framed_end = stop + 2
                    continue
            if end < 0:
                if size - pos > MAX_SIZE_LINE_BYTES:
                    raise BadResponse("a chunk-size line without end")
                self._line = data[pos:]
                break
            line = data[pos:end]
            pos = end + 2
            if self._in_trailers:
                self._trailer_bytes += len(line)
                if self._trailer_bytes > MAX_HEAD_BYTES:
                    raise BadResponse("trailers without end")
                self.ended = not line
                continue
            number, semicolon, _ = line.partition(b";")
            plain = plain and not semicolon
            length = chunk_size(number.rstrip(b" \t") if semicolon else number)
            if length:
                self._need = length + 2
            else:
                self._in_trailers = True
        self.at_boundary = not (self._need or self._line or self._in_trailers)
        if self.ended:
            self.surplus = size - pos
        payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        # Whole chunks only: a read that ends inside a chunk is framed anew, so that our framing never
        # depends on bytes that have yet to come.
        if plain and payload and not self._need:
            return payload, data if framed_end == size else data[:framed_end]
        return payload, None

    def _take(self, data: bytes, pos: int, pieces: list[bytes]) -> int:
        """Move the current chunk's bytes from data[pos:] to `pieces`; -> the new position."""
        have = min(self._need, len(data) - pos)
        body = min(have, self._need - 2)
        if body > 0:
            pieces.append(data[pos : pos + body])
        ending = data[pos + max(body, 0) : pos + have]
        expected = b"\n" if self._need == 1 else b"\r\n"
        if not expected.startswith(ending):
            raise BadResponse("a chunk that does not end with CRLF")
        self._need -= have
        return pos + have


def chunk_size(line: bytes) -> int:
    """Plain hex digits only: int(x, 16) alone would take "+1", "1_0" and blanks."""
    if not line or len(line) > 15 or not _HEX.issuperset(line):
        raise BadResponse("a chunk size that is not a hex number")
    return int(line, 16)


class _Sizes(dict[bytes, int]):
    """`chunk_size` by the line, remembered for the first ones; -5 for what is no size: no chunk is so long."""

    _MOST = 4_096

    def __missing__(self, line: bytes) -> int:
        try:
            size = chunk_size(line)
        except BadResponse:
            return -5
        if len(self) < self._MOST:
            self[line] = size
        return size


SIZES = _Sizes()


def chunk(payload: bytes) -> bytes:
    """`payload` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
