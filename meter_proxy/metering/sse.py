"""Server-Sent Events, wherever the stream was cut.

Follows the WHATWG HTML standard, sections 9.2.5 and 9.2.6: lines end in LF, CRLF or a lone CR, also mixed; a blank
line ends an event; a BOM may stand first; a line that starts with a colon is a comment; one space after a field's
colon is not part of the value; several `data` lines are one value, joined by LF.

Framer cuts a stream into pieces that joined are the stream again, so that whoever forwards them changes nothing.
Complete events come out at once, also when the CR at the end of a read may be half a CRLF.
"""

import re

_BOM = b"\xef\xbb\xbf"
_CR = 0x0D
_COLON = 0x3A
# Two line ends. The first must not be the CR of a CRLF, or that pair would count as two.
_BLANK_LINE = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n?|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_UNFINISHED_BLANK_LINE_BYTES = 3  # CRLF CR

TOO_BIG = b""  # stands for the text of an event over the bound; an event's own text is never empty

# Bytes of the stream, and the event they are: its lines, comments among them, without the blank line that ends it.
# None for what is no event (blank lines, a BOM); TOO_BIG for the first piece of an event over the bound, None for its
# other pieces.
Piece = tuple[bytes, bytes | None]


class Framer:
    """Cuts a stream into Pieces. Holds at most one unfinished event, of at most `max_event_bytes`."""

    def __init__(self, max_event_bytes: int, *, at_start: bool = True) -> None:
        """`at_start`: nothing of the stream has passed elsewhere, so that a BOM may come."""
        self._max_event_bytes = max_event_bytes
        self._held = bytearray()
        self._searched = 0  # no event ends before this offset of what is held
        self._has_cr = False  # in what is held: LF-only streams are searched without a regular expression
        self._at_start = at_start
        self._within_too_big = False
        self._before = b""  # the last bytes of the piece before, while within an event that is too big
        self._ended_in_cr = False
        self._drop_lf = False

    @property
    def is_between_events(self) -> bool:
        """Nothing is held: the next byte is the first of an event, or of a comment before it."""
        return not (self._held or self._at_start or self._within_too_big or self._ended_in_cr)

    def push(self, data: bytes) -> list[Piece]:
        """Everything that is complete now, in order; all pieces so far + `rest()` == everything pushed."""
        pieces: list[Piece] = []
        if self._ended_in_cr and data:
            data = self._finish_line_end(data, pieces)
        if self._within_too_big:
            data = self._skip_too_big(data, pieces)
        if not data:
            return pieces
        self._has_cr = self._has_cr or b"\r" in data
        buffer: bytes | bytearray = data
        if self._held:
            self._held += data
            buffer = self._held
        start = self._pass_bom(buffer, pieces) if self._at_start else 0
        if start < 0:
            self._held = bytearray(buffer)
            return pieces
        search = max(start, self._searched)
        while start < len(buffer):
            if buffer[start] in b"\r\n":
                line_end = _LINE_END.search(buffer, search)
                if line_end is None:
                    break
                stop = line_end.end()
                pieces.append((bytes(buffer[start:stop]), None))
            else:
                end, stop = self._find_end(buffer, search)
                if stop < 0:
                    break
                text: bytes | None = bytes(buffer[start:end])
                if end - start > self._max_event_bytes:
                    text = None if buffer[start] == _COLON else TOO_BIG
                pieces.append((bytes(buffer[start:stop]), text))
            start = search = stop
        self._hold(buffer, start, pieces)
        return pieces

    def drop_rest_of_line_end(self) -> None:
        """The last piece was taken out: if it ended in a CR, the LF that may follow is not handed out either."""
        self._drop_lf = self._ended_in_cr

    def rest(self) -> bytes:
        """What is held: the event that the stream ended, or stands, in."""
        return bytes(self._held)

    def _finish_line_end(self, data: bytes, pieces: list[Piece]) -> bytes:
        self._ended_in_cr = False
        if data.startswith(b"\n"):
            if not self._drop_lf:
                pieces.append((b"\n", None))
            data = data[1:]
        self._drop_lf = False
        return data

    def _skip_too_big(self, data: bytes, pieces: list[Piece]) -> bytes:
        """Pass an event over the bound on as it comes; returns what follows it."""
        joined = self._before + data
        blank_line = _BLANK_LINE.search(joined)
        if blank_line is None:
            self._before = joined[-_UNFINISHED_BLANK_LINE_BYTES:]
            passed = data
        else:
            self._within_too_big = False
            passed = data[: blank_line.end() - len(self._before)]
            self._ended_in_cr = len(passed) == len(data) and passed.endswith(b"\r")
        if passed:
            pieces.append((passed, None))
        return data[len(passed) :]

    def _pass_bom(self, buffer: bytes | bytearray, pieces: list[Piece]) -> int:
        """Where the first line starts: after a BOM if there is one; -1 while it cannot be told."""
        head = bytes(buffer[: len(_BOM)])
        if head != _BOM and _BOM.startswith(head):
            return -1
        self._at_start = False
        if head != _BOM:
            return 0
        pieces.append((head, None))
        return len(_BOM)

    def _find_end(self, buffer: bytes | bytearray, search: int) -> tuple[int, int]:
        """Where the event's lines end, and where the blank line after them does; -1, -1: not yet."""
        if not self._has_cr:
            end = buffer.find(b"\n\n", search)
            return (end, end + 2) if end >= 0 else (-1, -1)
        blank_line = _BLANK_LINE.search(buffer, search)
        return blank_line.span() if blank_line is not None else (-1, -1)

    def _hold(self, buffer: bytes | bytearray, start: int, pieces: list[Piece]) -> None:
        """Keep what is not complete yet, or let it pass when it is over the bound."""
        rest_bytes = len(buffer) - start
        self._ended_in_cr = rest_bytes == 0 and buffer[-1] == _CR
        if rest_bytes > self._max_event_bytes + _UNFINISHED_BLANK_LINE_BYTES:
            rest = bytes(buffer[start:])
            pieces.append((rest, None if rest.startswith(b":") else TOO_BIG))
            self._within_too_big = True
            self._before = rest[-_UNFINISHED_BLANK_LINE_BYTES:]
            rest_bytes, start = 0, len(buffer)
        if start or buffer is not self._held:
            self._held = bytearray(buffer[start:])
        self._searched = max(0, rest_bytes - _UNFINISHED_BLANK_LINE_BYTES)
        self._has_cr = self._has_cr and rest_bytes > 0


def is_single_line(text: bytes) -> bool:
    """The event has one line only."""
    return b"\n" not in text and b"\r" not in text


def data_spans(text: bytes) -> list[tuple[int, int]]:
    """Where in an event's text the values of its `data` fields stand, in order."""
    spans = []
    start = 0
    while start <= len(text):
        line_end = _LINE_END.search(text, start)
        end, following = line_end.span() if line_end is not None else (len(text), len(text) + 1)
        line = text[start:end]
        if line.startswith(b"data:"):
            value_start = start + 5 + line.startswith(b"data: ")
            spans.append((value_start, end))
        elif line == b"data":
            spans.append((end, end))
        start = following
    return spans


def parse(text: bytes) -> tuple[bytes, bytes]:
    """An event's name (empty: a plain message) and its data; the data is empty if it has none."""
    if text.startswith(b"data:") and is_single_line(text):
        return b"", text[5:].removeprefix(b" ")
    name = b""
    for line in _LINE_END.split(text):
        if line.startswith(b"event:"):
            name = line[6:].removeprefix(b" ")
    return name, b"\n".join(text[start:end] for start, end in data_spans(text))
