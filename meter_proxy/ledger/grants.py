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
from meter_proxy.quota.charge import Charge
from meter_proxy.quota.decision import Denied, denied
from meter_proxy.quota.headers import Headers, LimitHeaders
from meter_proxy.quota.reservation import SLICE_TOKENS, Terms, Want
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window
from meter_proxy.tasks import Patience

UNBOUNDED = 2**62  # output tokens: nothing ends the stream
ANSWER_S = 0.25  # an ask that is not answered by then counts as one that nobody could answer

_STRICTEST = ("closed", "bounded", "open")


class Unavailable:
    """Nobody could be asked, and the rules do not let this exchange pass unasked."""


UNAVAILABLE = Unavailable()


class Tab:
    """What the calls of one key for one model are put on: their terms, and the counters of the present windows.

    Good as long as `Quotas.is_good` says so; what was granted on it stays as it was granted.
    """

    __slots__ = ("account", "counters", "forgotten", "headers", "key", "quotas", "terms", "when_down")

    def __init__(self, quotas: "Quotas", terms: Terms, counters: Sequence[Counter], key: str, account: str) -> None:
        self.quotas = quotas
        self.terms = terms
        self.counters = tuple(counters)  # in the order of the rules
        self.key = key
        self.account = account
        self.headers = LimitHeaders(list(zip(terms.rules, terms.windows, counters, strict=True)))
        self.when_down = strictest(terms.rules)
        self.forgotten = 0  # as the books' number of that name, when the counters were looked up

    def parts(self, want: Want) -> list[Part]:
        """What `want` asks of each counter."""
        pairs = zip(self.counters, want.amounts_for(0), want.eaches, strict=True)
        return [Part(counter, up_front, each) for counter, up_front, each in pairs]


class Quotas:
    """One worker's grants."""

    def __init__(self, books: Books, sync: Sync, *, bounded_tokens: int) -> None:
        self.sync = sync
        self.bounded_tokens = bounded_tokens
        self._books = books
        self._allowances: dict[str, int] = {}  # key -> tokens left, while Redis is away
        self._loop = asyncio.get_running_loop()

    def open_tab(self, terms: Terms, *, key: str, account: str, former: Tab | None = None) -> Tab:
        """A tab for calls of `key`; `former`: the one that it replaces, because a window has ended."""
        counters = [
            self._counter(rule, window, account) for rule, window in zip(terms.rules, terms.windows, strict=True)
        ]
        if former is not None and former.terms.rules == terms.rules:
            for old, new in zip(former.counters, counters, strict=True):
                if old.book.window != new.book.window:
                    new.go_on_from(old)
        tab = Tab(self, terms, counters, key, account)
        tab.forgotten = self._books.forgotten
        return tab

    def is_good(self, tab: Tab) -> bool:
        """Whether its windows are those of now, and its counters those of the books."""
        terms = tab.terms
        return terms.began_at <= self.sync.now() < terms.ends_at and tab.forgotten == self._books.forgotten

    def _counter(self, rule: Rule, window: Window, account: str) -> Counter:
        book = self._books.counter(account, rule.holder, rule.owner, rule.id, window.id, rule.unit, window.ends_at)
        counter = counter_of(book)
        counter.limit = rule.limit
        return counter

    async def reserve(self, tab: Tab, want: Want) -> "Grant | Denied | Unavailable":
        """Ask for what an exchange needs to begin. Waits at most as long as the store may take to answer."""
        answer = self.reserve_now(tab, want)
        if answer is None and self.sync.store_up:
            answer = await self._ask(tab, want)
        return answer if answer is not None else self._reserve_alone(tab, want)

    def reserve_now(self, tab: Tab, want: Want) -> "Grant | Denied | None":
        """What this worker can say by itself; None: `reserve` must be asked."""
        if not self.sync.store_up:
            return None if tab.when_down == "open" else self._known_denial(tab, want)
        if self._allowances:
            self._allowances.clear()
        counters, amounts = tab.counters, want.amounts
        for counter, amount in zip(counters, amounts):  # noqa: B905 - `strict` costs 0.1 us of 3
            if not counter.covers(amount):
                return self._known_denial(tab, want)
        for counter, amount in zip(counters, amounts):  # noqa: B905
            if counter.take_credit(amount):
                self.sync.look_after(counter)
        return Grant(tab, want, want.most, amounts)

    def _known_denial(self, tab: Tab, want: Want) -> Denied | None:
        """What is used up needs no asking: it can only be more. Of several rules, the one that lasts longest."""
        terms, refusal = tab.terms, None
        amounts = want.amounts_for(want.least)
        for rule, window, counter, amount in zip(terms.rules, terms.windows, tab.counters, amounts, strict=True):
            if counter.known_used + amount > rule.limit and (refusal is None or _lasts_longer(window, refusal[1])):
                refusal = rule, window
        return denied(*refusal, self.sync.now()) if refusal is not None else None

    async def _ask(self, tab: Tab, want: Want) -> "Grant | Denied | None":
        """Ask Redis; None if it could not be asked."""
        future: asyncio.Future[Grant | Denied | None] = self._loop.create_future()

        def answered(ask: Ask, answer: Answer) -> None:
            # Here, not where the future is awaited: the next message must know what the last one was granted.
            result: Grant | Denied | None = None
            if answer.granted is not None:
                result = self._grant(tab, want, answer.granted, from_credit=answer.from_credit)
            elif answer.denied_by is not None:
                result = denied(tab.terms.rules[answer.denied_by], tab.terms.windows[answer.denied_by], self.sync.now())
            if not (ask.is_given_up or future.done()):  # done: cancelled, and whoever waited does not know it yet
                future.set_result(result)
            elif isinstance(result, Grant):
                result.release()

        ask = Ask(tab.parts(want), want.least, want.most, answered, self._loop.time() + ANSWER_S)
        self.sync.ask(tab.account, ask)
        try:
            return await future
        except BaseException:  # whoever waited is gone
            ask.is_given_up = True
            if future.done() and not future.cancelled() and isinstance(grant := future.result(), Grant):
                grant.release()
            raise

    def _grant(self, tab: Tab, want: Want, tokens: int, *, from_credit: bool = False) -> "Grant":
        grant = Grant(tab, want, tokens, want.amounts_for(tokens))
        for counter, amount in zip(tab.counters, grant.amounts, strict=True):
            self.hold(counter, amount, from_credit=from_credit)
        return grant

    def hold(self, counter: Counter, amount: int, *, from_credit: bool = False) -> None:
        """Keep `amount` more for a live exchange."""
        if counter.take_credit(amount) if from_credit else counter.take(amount):
            self.sync.look_after(counter)

    # While Redis is away.

    def _reserve_alone(self, tab: Tab, want: Want) -> "Grant | Unavailable":
        if tab.when_down == "closed":
            return UNAVAILABLE
        tokens, borrowed = want.most, 0
        if tab.when_down == "bounded":
            # What is asked up front is bounded by itself; the allowance looks at tokens only.
            output = max(want.least, 1) if want.most else want.bound or 0
            borrowed = self.borrow(tab.key, want.input_tokens + output, want.input_tokens + max(want.most, output))
            if not borrowed:
                return UNAVAILABLE
            tokens = min(want.most, max(0, borrowed - want.input_tokens))
        grant = self._grant(tab, want, tokens)
        grant.borrowed_tokens = borrowed
        for counter in tab.counters:
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

    def headers(self, tab: Tab) -> Headers:
        """What is left of the rules that apply, as far as this worker knows."""
        return tab.headers.at(self.sync.now())

    def known(self, rules: Sequence[tuple[Rule, Window]], account: str) -> list[tuple[int, int]]:
        """Used and reserved of each rule in its window, as far as this worker knows."""
        counters = [self._counter(rule, window, account) for rule, window in rules]
        return [(counter.known_used, counter.all_reserved) for counter in counters]

    async def look(self, rules: Sequence[tuple[Rule, Window]], account: str) -> list[tuple[int, int]] | None:
        """Used and reserved of each rule in its window, over all workers; None if Redis could not be asked."""
        counters = [self._counter(rule, window, account) for rule, window in rules]
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

    # What only some grants have of their own.
    exhausted: str | None = None
    cut_by: Rule | None = None
    on_change: Callable[[], None] | None = None
    borrowed_tokens = 0  # from the allowance of a key while Redis is away
    used_tokens = 0  # input and output, known at settlement
    granted = UNBOUNDED
    top_up_at = UNBOUNDED
    _spent = 0
    _ask: Ask | None = None
    _late: Patience | None = None
    _released = False

    def __init__(self, tab: Tab, want: Want, tokens: int, amounts: list[int]) -> None:
        """`tokens`: of output, granted so far; `amounts`: held of each counter, and the grant's own from now on."""
        self.tab = tab
        self.want = want
        self.amounts = amounts
        # To be sent upstream, per choice: the client gave none, and this is all that is granted.
        self.max_tokens = want.send_max_tokens
        if want.renews:
            self.granted = 0
            self._extend(tokens)
        elif tokens < want.most:  # nobody bounds this answer, and little is left
            self.max_tokens = max(1, tokens // want.choices)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """To which counters the exchange belongs."""
        return self.tab.terms.charges

    def top_up(self, spent: int) -> None:
        """So many output tokens are spent: see to the next slice. See `gateway.wall.Allowance`."""
        self._spent = spent
        if self._ask is not None or self.exhausted is not None or self._released:
            return
        tokens, quotas = self._next_slice(spent), self.tab.quotas
        parts = [part for part, rule in self._growing() if rule.when_exhausted != "finish"]
        if not parts or (quotas.sync.store_up and all(part.counter.covers(part.each * tokens) for part in parts)):
            self._take(tokens, credited=parts)
            return
        loop = asyncio.get_running_loop()
        self._ask = Ask(parts, 1, tokens, self._answered, loop.time() + ANSWER_S)
        self._late = Patience(ANSWER_S, self._is_late)
        quotas.sync.ask(self.tab.account, self._ask)

    def _growing(self) -> list[tuple[Part, Rule]]:
        """The counters that grow with the output."""
        places = zip(self.tab.counters, self.want.eaches, self.tab.terms.rules, strict=True)
        return [(Part(counter, 0, each), rule) for counter, each, rule in places if each]

    def _next_slice(self, spent: int) -> int:
        tokens = SLICE_TOKENS + max(0, spent - self.granted)  # an event may have been worth more than was left
        bound = self.want.bound
        return tokens if bound is None else max(1, min(tokens, bound - self.granted))

    def _answered(self, ask: Ask, answer: Answer) -> None:
        if ask is not self._ask:  # too late: what was granted is not held, and the next message says so
            for part in ask.parts:
                self.tab.quotas.sync.mark(part.counter.book)
            return
        self._stop_waiting()
        if answer.granted is not None:
            self._take(answer.granted, credited=ask.parts if answer.from_credit else ())
        elif answer.denied_by is not None:
            self._is_denied(self._rule_of(ask.parts[answer.denied_by]))
        else:
            self._go_alone(ask)
        if self.on_change is not None:
            self.on_change()

    def _rule_of(self, part: Part) -> Rule:
        return self.tab.terms.rules[self.tab.counters.index(part.counter)]

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
        tokens, tab = ask.most, self.tab
        policy = strictest(rule for _, rule in self._growing() if rule.when_exhausted != "finish")
        if policy == "bounded":
            tokens = tab.quotas.borrow(tab.key, 1, tokens)
            self.borrowed_tokens += tokens
        if policy == "closed" or not tokens:
            self._is_denied(self._rule_of(ask.parts[0]))
        else:
            self._take(tokens)
            for counter in tab.counters:
                tab.quotas.sync.mark(counter.book)

    def _take(self, tokens: int, credited: Sequence[Part] = ()) -> None:
        """Hold so many output tokens more."""
        tab, from_credit = self.tab, {part.counter for part in credited}
        places = zip(tab.counters, self.want.eaches, tab.terms.rules, strict=True)
        for place, (counter, each, rule) in enumerate(places):
            if each:
                amount = each * tokens
                self.amounts[place] += amount
                tab.quotas.hold(counter, amount, from_credit=counter in from_credit)
                if rule.when_exhausted == "finish":
                    tab.quotas.sync.mark(counter.book)
        self._extend(tokens)

    def _extend(self, tokens: int) -> None:
        self.granted = granted = self.granted + tokens
        self.top_up_at = granted - tokens // 2
        bound = self.want.bound
        if bound is not None and granted >= bound:
            self.granted = self.top_up_at = UNBOUNDED  # the upstream ends it by itself

    def input_is(self, input_tokens: int) -> None:
        """The real input is known: hold that, not the estimate."""
        more, tab, amounts = input_tokens - self.want.input_tokens, self.tab, self.amounts
        if not more:
            return
        for place, each in enumerate(tab.terms.input_eaches):
            change = max(each * more, -amounts[place])
            if change:
                amounts[place] += change
                counter = tab.counters[place]
                counter.reserved += change
                tab.quotas.sync.mark(counter.book)

    def release(self) -> None:
        """The exchange is settled, or was never begun. Idempotent."""
        if self._released:
            return
        self._released = True
        tab = self.tab
        if self.on_change is not None:
            self.on_change = None
        if self._ask is not None:
            self._ask.is_given_up = True
            self._stop_waiting()
        for counter, amount in zip(tab.counters, self.amounts):  # noqa: B905 - as above
            counter.reserved -= amount
            book = counter.book
            if book.waits_in != book.account:  # `mark` would see that, too, for twice the price
                tab.quotas.sync.mark(book)
        if self.borrowed_tokens:
            tab.quotas.give_back(tab.key, self.borrowed_tokens - self.used_tokens)

    def __repr__(self) -> str:
        granted = "unbounded" if self.granted == UNBOUNDED else self.granted
        return (
            f"<Grant granted={granted} spent={self._spent} exhausted={self.exhausted} counters={self.tab.counters!r}>"
        )


def strictest(rules: Iterable[Rule]) -> str:
    """The policy of several rules while Redis is away."""
    found = {rule.when_down for rule in rules}
    return next((policy for policy in _STRICTEST if policy in found), "open")


def _lasts_longer(one: Window, other: Window) -> bool:
    return (one.ends_at or UNBOUNDED) > (other.ends_at or UNBOUNDED)
