"""The operator's credential never reaches a client, not even inside an upstream's error message."""

import msgspec

from meter_proxy.metering.meter import NullMeter


def masked(text: str, secret: str | None) -> str:
    """`text` with the credential masked wherever it stands; with no credential, as it is."""
    return text.replace(secret, "*" * len(secret)) if secret else text


class RedactedError(NullMeter):
    """A `Meter` for an upstream's error: passes it on, bills nothing, masks the operator's credential.

    The mask has the credential's length, so a Content-Length stays right. Bytes may be cut anywhere; at
    most the beginning of a possible credential is held back.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret.encode()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        secret = self._secret
        whole = self._held + data if self._held else data
        shown = whole.replace(secret, b"*" * len(secret))
        longest = min(len(secret) - 1, len(shown))
        keep = next((n for n in range(longest, 0, -1) if shown.endswith(secret[:n])), 0)
        self._held = shown[len(shown) - keep :]
        return data if shown == data and not keep else shown[: len(shown) - keep]

    def finish(self) -> bytes:
        held, self._held, self.done = self._held, b"", True
        return held


class WithheldError(NullMeter):
    """In place of an error that came compressed, though we ask for `identity`: a credential in it cannot be seen."""

    def feed(self, data: bytes) -> bytes:
        return b""

    def finish(self) -> bytes:
        first, self.done = not self.done, True
        return _WITHHELD if first else b""


_WITHHELD = msgspec.json.encode({
    "error": {
        "message": "The upstream refused the request. Its explanation came compressed and is not shown.",
        "type": "server_error",
        "param": None,
        "code": "upstream_error",
    }
})  # fmt: skip
