"""One quota counter, as this worker sees it: its own part exactly, everybody else's as of the last message.

What is settled (`used`) stands in the counter's book, and so in the journal. What is held for live exchanges
(`reserved`), and what was granted ahead of them (`credit`), lives here only: a worker that dies holds nothing.
"""

from meter_proxy.ledger.books import CounterBook
from meter_proxy.quota.charge import expires_at

UNKNOWN_LIMIT = -1
FAR_GRANTS = 100  # per worker: so many usual grants must be left, that credit may be given
CREDIT_RATE = 0.5  # grants per tick (0.1 s), on the average, from which on round trips are worth saving
CREDIT_TICKS = 2  # how long credit shall last: it is renewed every 1 to 1.5 ticks
CREDIT_GRANTS = 2  # and so many usual grants more: at 10 a second, arrivals are that uneven
MEMORY_TICKS = 8  # over so many, the rate is averaged, and the highest pace is forgotten
IDLE_TICKS = 3  # credit that nobody takes for so long is given back
OPEN_HASH_S = 86_400  # a counter without a window is forgotten so long after its last exchange


class Counter:
    """What is open in one counter. `reserved` and `credit` are this worker's own."""

    __slots__ = (
        "_idle_ticks",
        "_others_reserved",
        "_others_used",
        "_pace",
        "_rate",
        "_taken",
        "_takes",
        "_usual",
        "acked_version",
        "book",
        "credit",
        "limit",
        "reserved",
        "seen_used",
        "sent_at",
    )

    def __init__(self, book: CounterBook) -> None:
        self.book = book
        self.limit = UNKNOWN_LIMIT
        self.reserved = 0
        self.credit = 0
        self.acked_version = 0
        self.seen_used = 0  # the highest sum that anybody told us: a store that forgot it is not believed
        self.sent_at = 0.0  # loop time of the last message: the lease runs from there
        self._others_used = 0  # `seen_used` less our part of it, as of the last message
        self._others_reserved = 0
        self._takes = self._taken = 0  # grants, and their amounts, in this tick
        self._usual = 1  # amount of a grant
        self._rate = 0.0  # grants per tick, on the average
        self._pace = 0  # the most that was lately taken in a tick
        self._idle_ticks = 0

    @property
    def holds(self) -> int:
        """What Redis shall keep free for us."""
        return self.reserved + self.credit

    @property
    def known_used(self) -> int:
        """What is used at least, by all workers: it can only be more."""
        return self.book.used + self._others_used

    @property
    def all_reserved(self) -> int:
        """What all workers hold, as of the last message; our unused credit is nobody's yet."""
        return self._others_reserved + self.reserved

    @property
    def remaining(self) -> int:
        """Limit - used - reserved, as of the last message and our own doings since; at least 0."""
        left = self.limit - self.book.used - self._others_used - self._others_reserved - self.reserved
        return left if left > 0 else 0

    def covers(self, amount: int) -> bool:
        """Whether credit covers a grant of `amount`, and nothing that we know of speaks against it."""
        return self.credit >= amount and self.book.used + self._others_used <= self.limit - amount

    def take_credit(self, amount: int) -> bool:
        """Keep `amount` of our credit for a live exchange; tells whether it is the first grant in this tick."""
        self.credit -= amount
        self.reserved += amount  # as `take`, which to call costs 0.1 us
        self._taken += amount
        self._usual = amount
        self._takes = takes = self._takes + 1
        return takes == 1

    def take(self, amount: int) -> bool:
        """Keep `amount` for a live exchange; tells whether it is the first grant in this tick."""
        self.reserved += amount
        self._taken += amount
        self._usual = amount
        self._takes = takes = self._takes + 1
        return takes == 1

    def tick(self) -> bool:
        """A tenth of a second is over; tells whether unused credit was given back, which Redis should know."""
        takes, taken = self._takes, self._taken
        self._takes = self._taken = 0
        self._rate += (takes - self._rate) / MEMORY_TICKS
        self._pace = max(taken, self._pace - self._pace // MEMORY_TICKS)
        if takes:
            self._idle_ticks = 0
            return False
        self._idle_ticks += 1
        if self._idle_ticks <= IDLE_TICKS:
            return False
        self._rate, self._pace = 0.0, 0
        had_credit, self.credit = self.credit > 0, 0
        return had_credit

    @property
    def is_idle(self) -> bool:
        """Nothing to look after: no credit, no recent grant."""
        return not self.credit and self._idle_ticks > IDLE_TICKS

    def go_on_from(self, former: "Counter") -> None:
        """The window of `former` is over, and this one's begins: expect the same pace."""
        self._rate = max(former._rate, former._takes / MEMORY_TICKS)
        self._pace = max(former._pace, former._taken)
        self._usual = former._usual

    @property
    def wish(self) -> int:
        """The credit that the present rate makes worth while."""
        if self._rate < CREDIT_RATE and self._takes < CREDIT_RATE * MEMORY_TICKS:
            return 0
        return CREDIT_TICKS * max(self._pace, self._taken) + CREDIT_GRANTS * self._usual

    def arguments(self, version: int, workers: int) -> list[str | int]:
        """This counter in a message, as in `sync.lua`. `version` 0: of a journal that holds nothing any more."""
        book = self.book
        forgotten_at = expires_at(book.window, book.ends_at)
        if not book.ends_at and book.window != "total":
            forgotten_at = -OPEN_HASH_S
        return [
            book.journal_id,
            version,
            self.acked_version if version else 0,
            max(0, book.acked_used),
            book.used,
            self.holds,
            self.credit,
            self.limit,
            self.seen_used,
            max(0, self.wish - self.credit) if version else 0,
            FAR_GRANTS * max(1, self._usual) * workers,
            forgotten_at,
        ]

    def told(self, *, used: int, reserved: int, own_used: int, own_reserved: int) -> None:
        """Take in the sums of a reply, and what we had told ourselves by then."""
        self.seen_used = max(self.seen_used, used)
        self._others_used = self.seen_used - own_used
        self._others_reserved = max(0, reserved - own_reserved)

    def __repr__(self) -> str:
        book = self.book
        return (
            f"<Counter {book.account} {book.holder}:{book.owner}:{book.rule}:{book.window} limit={self.limit} "
            f"used={self.known_used} reserved={self.reserved} credit={self.credit}>"
        )


def counter_of(book: CounterBook) -> Counter:
    """The live counter of a book; made when it is first needed."""
    counter: Counter | None = book.live
    if counter is None:
        counter = book.live = Counter(book)
    return counter
