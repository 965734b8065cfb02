"""CodedMeter: an answer that came compressed is metered in a decoded copy and forwarded untouched.

We ask upstreams for `identity`; this is for those that compress all the same. A broken or unknown coding never
raises and never stops the answer: it is flagged, and what was decoded before it counts. Decoding goes in pieces of
bounded size, and ends at a bound per read, so that a bomb costs neither memory nor much time.
"""

import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from meter_proxy.metering.around import AroundMeter
from meter_proxy.metering.body import BodyMeter, NullMeter
from meter_proxy.metering.dialects.counts import Fault
from meter_proxy.metering.stream import StreamMeter

MAX_DECODED_BYTES_PER_FEED = 32 * 1024 * 1024  # a read of 256 KiB that inflates more than 128-fold is no answer
# Decoded at once. What comes before damage is lost only with the step that the damage is in; and a step inflates to
# little: 33 KiB with zlib, 8 blocks of 128 KiB with zstd. Only brotli needs a bound of its own.
_STEP_BYTES = 32
_BROTLI_PIECE_BYTES = 256 * 1024
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024  # RFC 9659: what a decoder of this coding must support, and no more
_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS


class BadCoding(Exception):
    """The bytes are not of the coding that the header names, or inflate beyond all measure."""


class Decoder(Protocol):
    """Decodes one content coding, wherever it was cut."""

    is_whole: bool  # the coded text has ended, or has not begun

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Pieces of bounded size, of a few bytes at once. Raises BadCoding, and is of no use after that."""


class CodedMeter(AroundMeter):
    """A meter around the meter of the decoded answer. Hands out what it is given, always."""

    def __init__(self, inner: StreamMeter | BodyMeter | NullMeter | AroundMeter, coding: str) -> None:
        super().__init__(inner)
        self._decoder = _decoder_for(coding)
        self._is_bad = self._decoder is None

    def feed(self, data: bytes) -> bytes:
        """`data` itself."""
        if self._decoder is not None:
            try:
                self._meter_decoded(self._decoder, data)
            except BadCoding:
                self._decoder = None
                self._is_bad = True
        return data

    def finish(self) -> bytes:
        """The upstream ended the answer; nothing was held."""
        if self._decoder is not None and not self._decoder.is_whole:
            self._is_bad = True
        self._inner.finish()
        return b""

    @property
    def bad_usage(self) -> list[str]:
        return [*self._inner.bad_usage, Fault.BAD_CODING] if self._is_bad else self._inner.bad_usage

    def _meter_decoded(self, decoder: Decoder, data: bytes) -> None:
        size_bytes = 0
        for start in range(0, len(data), _STEP_BYTES):
            for piece in decoder.decode(data[start : start + _STEP_BYTES]):
                self._inner.feed(piece)
                size_bytes += len(piece)
                if size_bytes > MAX_DECODED_BYTES_PER_FEED:
                    raise BadCoding


def _decoder_for(coding: str) -> Decoder | None:
    """A fresh decoder for a `Content-Encoding`; None for one that we do not know."""
    if coding in ("gzip", "x-gzip"):
        return _Zlib(_GZIP)
    if coding == "deflate":
        return _Zlib(None)
    if coding == "br":
        return _Brotli()
    if coding == "zstd":
        return _Zstandard()
    return None


class _Zlib:
    """gzip of one or more members (RFC 1952), and `deflate`: with the zlib wrapper (RFC 9110) or, wrongly, raw."""

    def __init__(self, wbits: int | None) -> None:
        self.is_whole = True
        self._wbits = wbits  # None: the first two bytes tell
        self._head = b""
        self._inflate: Any = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        data = self._head + data
        self._head = b""
        while data:
            if self._wbits is None:
                if len(data) < 2:
                    self._head, self.is_whole = data, False
                    return
                is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0  # RFC 1950, section 2.2
                self._wbits = _ZLIB if is_zlib else _RAW_DEFLATE
            if self._inflate is None:
                self._inflate = zlib.decompressobj(self._wbits)
            try:
                piece = self._inflate.decompress(data)
            except zlib.error as exc:
                raise BadCoding from exc
            data = self._inflate.unused_data
            self.is_whole = self._inflate.eof
            if self.is_whole:
                self._inflate = None
            if piece:
                yield piece


class _Brotli:
    """RFC 7932."""

    def __init__(self) -> None:
        import brotli  # only where an upstream sends it

        self.is_whole = True
        self._error = brotli.error
        self._inflate: Any = brotli.Decompressor()

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data or not self._inflate.can_accept_more_data():
            try:
                piece = self._inflate.process(data, output_buffer_limit=_BROTLI_PIECE_BYTES)
            except self._error as exc:
                raise BadCoding from exc
            data = b""
            if piece:
                yield piece
        self.is_whole = self._inflate.is_finished()


class _Zstandard:
    """RFC 8878, of one or more frames."""

    def __init__(self) -> None:
        import zstandard  # only where an upstream sends it

        self.is_whole = True
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._inflate: Any = self._decompressor.decompressobj()

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate.eof:
                self._inflate = self._decompressor.decompressobj()
            try:
                piece = self._inflate.decompress(data)
            except self._error as exc:
                raise BadCoding from exc
            data = self._inflate.unused_data if self._inflate.eof else b""
            if piece:
                yield piece
        self.is_whole = self._inflate.eof
