"""ScriptedAllowance: a grant that answers as a test says, in place of the ledger's.

grant = ScriptedAllowance(3, 2, "stop")     # 3 tokens; the first renewal brings 2, the second ends the stream
proxy.gateway.quotas.grant = grant.given    # every call gets it
...
await grant.asked()                         # the stream stands at the wall, or asks for more before it
grant.answer()                              # the renewal that was asked for arrives
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.support.waiting import until


class ScriptedAllowance:
    """Grants `granted` tokens; renewals come in the order of `renewals`: a number of tokens, or `stop` or `error`.

    With `at_once` they come within `top_up`, else when the test calls `answer`. After the last there is `stop`.
    """

    def __init__(self, granted: int, *renewals: int | str, at_once: bool = False, top_up_at: int | None = None) -> None:
        self.granted = granted
        self.top_up_at = granted if top_up_at is None else top_up_at
        self.exhausted: str | None = None
        self.on_change: Callable[[], None] | None = None
        self.spent: list[int] = []  # what each `top_up` was told
        self.inputs: list[int] = []  # what each `input_is` was told
        self.is_pending = False
        self._renewals = list(renewals)
        self._at_once = at_once
        # What the gateway wants of a grant besides.
        self.cut_by = SimpleNamespace(id="tokens-day", holder="k")
        self.charges: tuple[Any, ...] = ()
        self.max_tokens: int | None = None
        self.used_tokens = 0

    async def given(self, call: object) -> "ScriptedAllowance":
        """Stands for `QuotaGate.grant`."""
        return self

    def top_up(self, spent: int) -> None:
        self.spent.append(spent)
        if self.is_pending or self.exhausted is not None:
            return
        if self._at_once:
            self._renew()
        else:
            self.is_pending = True

    def input_is(self, input_tokens: int) -> None:
        self.inputs.append(input_tokens)

    def release(self) -> None:
        self.on_change = None

    async def asked(self) -> None:
        """Wait until a renewal is asked for."""
        await until(lambda: self.is_pending, "a renewal to be asked for")

    def answer(self) -> None:
        """The renewal that was asked for arrives."""
        assert self.is_pending
        self.is_pending = False
        self._renew()
        if self.on_change is not None:
            self.on_change()

    def _renew(self) -> None:
        renewal = self._renewals.pop(0) if self._renewals else "stop"
        if isinstance(renewal, int):
            self.granted += renewal
            self.top_up_at = self.granted
        else:
            self.exhausted = renewal
