"""Every error that crosses a border in this package, and whose fault it is.

    MeterProxyError
      ClientError            the caller's: becomes a 4xx reply in OpenAI's shape
      UpstreamError          the upstream's
        UpstreamUnavailable    no connection, or it broke before an answer: 502
        UpstreamTimeout        too slow: 504
      StoreError             Redis or Valkey: refused, unreachable, unusable
      ConfigError            the operator's: a message with file, line, column
      CannotStart            the machine's: state directory locked, port taken (exit code 3)
        DamagedJournal         a journal that nobody may write behind; `meter-proxy repair`

Errors are translated at the border where they come in, once, with `raise ... from exc`.
"""


class MeterProxyError(Exception):
    """Base of all errors of this package. `str()` is safe to show: no secrets, no prompt."""


class ClientError(MeterProxyError):
    """The caller asked wrongly. `status`, `type`, `param` and `code` are the reply's, as in OpenAI's API."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.type = type
        self.headers = headers


class UpstreamError(MeterProxyError):
    """The upstream could not be used, or broke off."""


class UpstreamUnavailable(UpstreamError):
    """No connection, or it ended before the answer did."""


class UpstreamTimeout(UpstreamError):
    """The upstream took longer than its `timeouts` allow."""


class StoreError(MeterProxyError):
    """The store (Redis or Valkey) refused, or cannot be reached. `transient`: it may be better in a moment."""

    transient = False


class ConfigError(MeterProxyError):
    """The configuration is wrong. `faults` are lines `file:line:col: path: message`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class CannotStart(MeterProxyError):
    """This machine will not let us start: exit code 3, one line that says what to do."""


class DamagedJournal(CannotStart):
    """A journal holds something wrong before something good: not what a killed process leaves."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path} is damaged at byte {offset} ({reason}). See what can be saved: meter-proxy repair")
        self.path = path
        self.offset = offset
