"""Grants: how much an exchange may use, asked of Redis, or of what this worker holds.

    reserve   before anything is sent upstream: all rules grant, or one denies
    top_up    while the stream flows: slice by slice, in the background
    release   at settlement: what was used is in the books, the rest is free

Far from a limit a worker holds credit and grants by itself; near it, each grant is one round trip, shared by all who
wait at that moment. While Redis is away the rules' `when_down` decides: nothing (closed), as much as an allowance
per key holds (bounded), or anything (open). What is granted then stands in the counters like everything else, and
reaches Redis when it is back.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from meter_proxy.ledger.books import Books
from meter_proxy.ledger.counters import Counter, counter_of
from meter_proxy.ledger.messages import Answer, Ask, Part
from meter_proxy.ledger.sync import Sync
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.quota.decision import Denied, Left, denied
from meter_proxy.quota.reservation import SLICE_TOKENS, Claim, Want
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window
from meter_proxy.tasks import Patience

UNBOUNDED = 2**62  # output tokens: nothing ends the stream
ANSWER_S = 0.25  # an ask that is not answered by then counts as one that nobody could answer

_STRICTEST = ("closed", "bounded", "open")


class Unavailable:
    """Nobody could be asked, and the rules do not let this exchange pass unasked."""


UNAVAILABLE = Unavailable()


class Quotas:
    """One worker's grants."""

    def __init__(self, books: Books, sync: Sync, *, bounded_tokens: int) -> None:
        self.sync = sync
        self.bounded_tokens = bounded_tokens
        self._books = books
        self._allowances: dict[str, int] = {}  # key -> tokens left, while Redis is away
        self._loop = asyncio.get_running_loop()

    async def reserve(self, want: Want, *, key: str, account: str) -> "Grant | Denied | Unavailable":
        """Ask for what an exchange needs to begin. Waits at most as long as the store may take to answer."""
        counters = [self._counter(claim, account) for claim in want.claims]
        answer = self._reserve_from_here(want, counters, key, account)
        if answer is None and self.sync.store_up:
            answer = await self._ask(want, counters, key, account)
        return answer if answer is not None else self._reserve_alone(want, counters, key, account)

    def reserve_now(self, want: Want, *, key: str, account: str) -> "Grant | Denied | None":
        """What this worker can say by itself; None: `reserve` must be asked."""
        return self._reserve_from_here(want, [self._counter(claim, account) for claim in want.claims], key, account)

    def _reserve_from_here(
        self, want: Want, counters: Sequence[Counter], key: str, account: str
    ) -> "Grant | Denied | None":
        store_up = self.sync.store_up
        is_open = not store_up and strictest(claim.rule for claim in want.claims) == "open"
        refusal = None if is_open else self._known_denial(want, counters)
        if refusal is not None or not store_up:
            return refusal
        if self._allowances:
            self._allowances.clear()
        if _credit_covers(want.claims, counters, want.most):
            return self._grant(want, counters, want.most, key, account, from_credit=True)
        return None

    def _counter(self, claim: Claim, account: str) -> Counter:
        rule, window = claim.rule, claim.window
        book = self._books.counter(account, rule.holder, rule.owner, rule.id, window.id, rule.unit, window.ends_at)
        counter = counter_of(book)
        counter.limit = rule.limit
        return counter

    def _known_denial(self, want: Want, counters: Sequence[Counter]) -> Denied | None:
        """What is used up needs no asking: it can only be more. Of several rules, the one that lasts longest."""
        refusal: Claim | None = None
        for claim, counter in zip(want.claims, counters, strict=True):
            if counter.known_used + claim.base + claim.each * want.least > claim.rule.limit and (
                refusal is None or _lasts_longer(claim.window, refusal.window)
            ):
                refusal = claim
        return denied(refusal.rule, refusal.window, self.sync.now()) if refusal is not None else None

    async def _ask(self, want: Want, counters: Sequence[Counter], key: str, account: str) -> "Grant | Denied | None":
        """Ask Redis; None if it could not be asked."""
        future: asyncio.Future[Grant | Denied | None] = self._loop.create_future()

        def answered(ask: Ask, answer: Answer) -> None:
            # Here, not where the future is awaited: the next message must know what the last one was granted.
            result: Grant | Denied | None = None
            if answer.granted is not None:
                result = self._grant(want, counters, answer.granted, key, account)
            elif answer.denied_by is not None:
                claim = want.claims[answer.denied_by]
                result = denied(claim.rule, claim.window, self.sync.now())
            if not ask.is_given_up:
                future.set_result(result)
            elif isinstance(result, Grant):
                result.release()

        parts = [Part(counter, claim.base, claim.each) for claim, counter in zip(want.claims, counters, strict=True)]
        ask = Ask(parts, want.least, want.most, answered, self._loop.time() + ANSWER_S)
        self.sync.ask(account, ask)
        try:
            return await future
        except BaseException:  # whoever waited is gone
            ask.is_given_up = True
            if future.done() and not future.cancelled() and isinstance(grant := future.result(), Grant):
                grant.release()
            raise

    def _grant(
        self,
        want: Want,
        counters: Sequence[Counter],
        tokens: int,
        key: str,
        account: str,
        *,
        from_credit: bool = False,
    ) -> "Grant":
        grant = Grant(self, want, counters, tokens, key, account)
        for counter, amount in zip(counters, grant.amounts, strict=True):
            self.hold(counter, amount, from_credit=from_credit)
        return grant

    def hold(self, counter: Counter, amount: int, *, from_credit: bool = False) -> None:
        """Keep `amount` for a live exchange."""
        counter.reserved += amount
        if from_credit:
            counter.credit -= amount
        counter.noted(amount)
        self.sync.look_after(counter)

    # While Redis is away.

    def _reserve_alone(self, want: Want, counters: Sequence[Counter], key: str, account: str) -> "Grant | Unavailable":
        policy = strictest(claim.rule for claim in want.claims)
        if policy == "closed":
            return UNAVAILABLE
        tokens, borrowed = want.most, 0
        if policy == "bounded":
            # What the claims hold in `base` is bounded by itself; the allowance looks at tokens only.
            output = max(want.least, 1) if want.most else want.bound or 0
            borrowed = self.borrow(key, want.input_tokens + output, want.input_tokens + max(want.most, output))
            if not borrowed:
                return UNAVAILABLE
            tokens = min(want.most, max(0, borrowed - want.input_tokens))
        grant = self._grant(want, counters, tokens, key, account)
        grant.borrowed_tokens = borrowed
        for counter in counters:
            self.sync.mark(counter.book)
        return grant

    def borrow(self, key: str, least: int, most: int) -> int:
        """Take tokens from the key's allowance: as many as there are, up to `most`; 0 where `least` are not there."""
        left = self._allowances.get(key, self.bounded_tokens)
        taken = min(most, left)
        if taken < max(1, least):
            return 0
        self._allowances[key] = left - taken
        return taken

    def give_back(self, key: str, tokens: int) -> None:
        """Correct an allowance by what was really used; nothing once Redis was there again."""
        if key in self._allowances:
            self._allowances[key] += tokens

    # What is told to callers.

    def left(self, grant_or_want: "Grant | Want", account: str) -> list[Left]:
        """What is left of each rule that applies, after this admission, as far as this worker knows."""
        if isinstance(grant_or_want, Grant):
            pairs = zip(grant_or_want.want.claims, grant_or_want.counters, strict=True)
            return [Left(claim.rule, claim.window, counter.remaining) for claim, counter in pairs]
        return [
            Left(claim.rule, claim.window, self._counter(claim, account).remaining) for claim in grant_or_want.claims
        ]

    def known(self, rules: Sequence[tuple[Rule, Window]], account: str) -> list[tuple[int, int]]:
        """Used and reserved of each rule in its window, as far as this worker knows."""
        counters = [self._counter(Claim(rule, window, 0, 0, 0), account) for rule, window in rules]
        return [(counter.known_used, counter.all_reserved) for counter in counters]

    async def look(self, rules: Sequence[tuple[Rule, Window]], account: str) -> list[tuple[int, int]] | None:
        """Used and reserved of each rule in its window, over all workers; None if Redis could not be asked."""
        want = Want(
            claims=tuple(Claim(rule, window, 0, 0, 0) for rule, window in rules),
            least=0,
            most=0,
            bound=None,
            send_max_tokens=None,
            input_tokens=0,
            renews=False,
            choices=1,
        )
        counters = [self._counter(claim, account) for claim in want.claims]
        if not counters:
            return []
        future: asyncio.Future[bool] = self._loop.create_future()

        def answered(ask: Ask, answer: Answer) -> None:
            if not future.done():
                future.set_result(answer.granted is not None or answer.denied_by is not None)

        parts = [Part(counter, 0, 0) for counter in counters]
        self.sync.ask(account, Ask(parts, 0, 0, answered, self._loop.time()))
        if not await future:
            return None
        return [(counter.known_used, counter.all_reserved) for counter in counters]


class Grant:
    """What one exchange holds; the wall that its stream may run into (`gateway.wall.Allowance`)."""

    __slots__ = (
        "_account",
        "_ask",
        "_bound",
        "_key",
        "_late",
        "_max_tokens",
        "_quotas",
        "_released",
        "_spent",
        "amounts",
        "borrowed_tokens",
        "counters",
        "cut_by",
        "exhausted",
        "granted",
        "on_change",
        "top_up_at",
        "used_tokens",
        "want",
    )

    def __init__(
        self, quotas: Quotas, want: Want, counters: Sequence[Counter], tokens: int, key: str, account: str
    ) -> None:
        self.want = want
        self.counters = counters
        self.amounts = [claim.base + claim.each * tokens for claim in want.claims]  # held of each counter
        self.exhausted: str | None = None
        self.cut_by: Rule | None = None
        self.on_change: Callable[[], None] | None = None
        self.borrowed_tokens = 0  # from the allowance of a key while Redis is away
        self.used_tokens = 0  # input and output, known at settlement
        self.granted = self.top_up_at = UNBOUNDED
        self._quotas = quotas
        self._key = key
        self._account = account
        self._bound = want.bound
        self._spent = 0
        self._ask: Ask | None = None
        self._late: Patience | None = None
        self._released = False
        self._max_tokens = want.send_max_tokens
        if want.renews:
            self.granted = 0
            self._extend(tokens)
        elif tokens < want.most:  # nobody bounds this answer, and little is left
            self._max_tokens = max(1, tokens // want.choices)

    @property
    def max_tokens(self) -> int | None:
        """What to send upstream as `max_tokens`, per choice: the client gave none, and this is all that is granted."""
        return self._max_tokens

    @property
    def charges(self) -> tuple[Charge, ...]:
        """To which counters the exchange belongs."""
        return tuple(
            Charge(claim.rule.holder, claim.rule.id, claim.window.id, claim.rule.unit, claim.window.ends_at)
            for claim in self.want.claims
        )

    def top_up(self, spent: int) -> None:
        """So many output tokens are spent: see to the next slice. See `gateway.wall.Allowance`."""
        self._spent = spent
        if self._ask is not None or self.exhausted is not None or self._released:
            return
        tokens = self._next_slice(spent)
        quotas = self._quotas
        parts = [part for part, rule in self._parts() if rule.when_exhausted != "finish"]
        if not parts or (quotas.sync.store_up and all(part.counter.credit >= part.each * tokens for part in parts)):
            self._take(tokens, credited=parts)
            return
        loop = asyncio.get_running_loop()
        self._ask = Ask(parts, 1, tokens, self._answered, loop.time() + ANSWER_S)
        self._late = Patience(ANSWER_S, self._is_late)
        quotas.sync.ask(self._account, self._ask)

    def _parts(self) -> list[tuple[Part, Rule]]:
        """The counters that grow with the output."""
        return [
            (Part(counter, 0, claim.each), claim.rule)
            for claim, counter in zip(self.want.claims, self.counters, strict=True)
            if claim.each
        ]

    def _next_slice(self, spent: int) -> int:
        tokens = SLICE_TOKENS + max(0, spent - self.granted)  # an event may have been worth more than was left
        return tokens if self._bound is None else max(1, min(tokens, self._bound - self.granted))

    def _answered(self, ask: Ask, answer: Answer) -> None:
        if ask is not self._ask:  # too late: what was granted is not held, and the next message says so
            for part in ask.parts:
                self._quotas.sync.mark(part.counter.book)
            return
        self._stop_waiting()
        if answer.granted is not None:
            self._take(answer.granted)
        elif answer.denied_by is not None:
            self._is_denied(self._rule_of(ask.parts[answer.denied_by]))
        else:
            self._go_alone(ask)
        if self.on_change is not None:
            self.on_change()

    def _rule_of(self, part: Part) -> Rule:
        return self.want.claims[self.counters.index(part.counter)].rule

    def _is_late(self) -> None:
        ask, self._late = self._ask, None
        if ask is not None:
            ask.is_given_up = True
            self._stop_waiting()
            self._go_alone(ask)
            if self.on_change is not None:
                self.on_change()

    def _stop_waiting(self) -> None:
        self._ask = None
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_denied(self, rule: Rule) -> None:
        """At the wall that is final. Before it, others may still release what they hold: ask again there."""
        if self._spent >= self.granted:
            self.exhausted = rule.when_exhausted
            self.cut_by = rule
        else:
            self.top_up_at = self.granted

    def _go_alone(self, ask: Ask) -> None:
        """Redis could not be asked for more."""
        tokens, quotas = ask.most, self._quotas
        policy = strictest(rule for part, rule in self._parts() if rule.when_exhausted != "finish")
        if policy == "bounded":
            tokens = quotas.borrow(self._key, 1, tokens)
            self.borrowed_tokens += tokens
        if policy == "closed" or not tokens:
            self._is_denied(self._rule_of(ask.parts[0]))
        else:
            self._take(tokens)
            for counter in self.counters:
                quotas.sync.mark(counter.book)

    def _take(self, tokens: int, credited: Sequence[Part] = ()) -> None:
        """Hold so many output tokens more."""
        from_credit = {part.counter for part in credited}
        for place, (claim, counter) in enumerate(zip(self.want.claims, self.counters, strict=True)):
            if claim.each:
                amount = claim.each * tokens
                self.amounts[place] += amount
                self._quotas.hold(counter, amount, from_credit=counter in from_credit)
                if claim.rule.when_exhausted == "finish":
                    self._quotas.sync.mark(counter.book)
        self._extend(tokens)

    def _extend(self, tokens: int) -> None:
        self.granted += tokens
        self.top_up_at = self.granted - tokens // 2
        if self._bound is not None and self.granted >= self._bound:
            self.granted = self.top_up_at = UNBOUNDED  # the upstream ends it by itself

    def input_is(self, input_tokens: int) -> None:
        """The real input is known: hold that, not the estimate."""
        estimate = self.want.input_tokens
        for place, (claim, counter) in enumerate(zip(self.want.claims, self.counters, strict=True)):
            if claim.rule.unit is Unit.COST_USD:
                change = claim.input_each * (input_tokens - estimate)
            elif claim.rule.unit in (Unit.TOKENS, Unit.INPUT_TOKENS):
                change = input_tokens - estimate
            else:
                continue
            change = max(change, -self.amounts[place])
            if change:
                self.amounts[place] += change
                counter.reserved += change
                self._quotas.sync.mark(counter.book)

    def release(self) -> None:
        """The exchange is settled, or was never begun. Idempotent."""
        if self._released:
            return
        self._released = True
        ask, self.on_change = self._ask, None
        if ask is not None:
            ask.is_given_up = True
            self._stop_waiting()
        for counter, amount in zip(self.counters, self.amounts, strict=True):
            counter.reserved -= amount
            self._quotas.sync.mark(counter.book)
        if self.borrowed_tokens:
            self._quotas.give_back(self._key, self.borrowed_tokens - self.used_tokens)

    def __repr__(self) -> str:
        granted = "unbounded" if self.granted == UNBOUNDED else self.granted
        return f"<Grant granted={granted} spent={self._spent} exhausted={self.exhausted} counters={self.counters!r}>"


def strictest(rules: Iterable[Rule]) -> str:
    """The policy of several rules while Redis is away."""
    found = {rule.when_down for rule in rules}
    return next((policy for policy in _STRICTEST if policy in found), "open")


def _credit_covers(claims: Sequence[Claim], counters: Sequence[Counter], tokens: int) -> bool:
    return all(
        counter.credit >= claim.base + claim.each * tokens for claim, counter in zip(claims, counters, strict=True)
    )


def _lasts_longer(one: Window, other: Window) -> bool:
    return (one.ends_at or UNBOUNDED) > (other.ends_at or UNBOUNDED)
