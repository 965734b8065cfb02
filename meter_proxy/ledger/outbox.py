"""What Redis is to be told and asked, account by account: who asks goes first, then whose books have waited longest."""

import asyncio
import itertools
from collections.abc import Callable, Iterator

from meter_proxy.ledger.books import Book, CounterBook, DayBook
from meter_proxy.ledger.messages import Ask

COALESCE_S = 0.05  # what is settled within this time goes out together; <= 0.1 s from settlement to Redis
MAX_DAYS, MAX_COUNTERS, MAX_ASKS = 25, 50, 100  # in one message: it holds Redis for well below 1 ms


class Account:
    """What is to be told and asked of one account's keys."""

    __slots__ = ("asks", "counters", "days", "due_at", "is_under_way", "name", "one_by_one", "pause_s", "retry_at")

    def __init__(self, name: str) -> None:
        self.name = name
        self.days: dict[DayBook, None] = {}  # changed since they were last sent, in the order of their change
        self.counters: dict[CounterBook, None] = {}
        self.asks: list[Ask] = []
        self.due_at = 0.0
        self.is_under_way = False  # a message of it is; what changes meanwhile waits here, too
        self.one_by_one = False  # something of it is refused: find out what
        self.retry_at = 0.0  # its part of the store does not answer
        self.pause_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Nothing waits here."""
        return not (self.days or self.counters or self.asks)


class Outbox:
    """The accounts with something to send. A book waits in one of them at most, and says in which."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when something came into an empty box, and at every ask."""
        self._wake = wake
        self._accounts: dict[str, Account] = {}
        self._asking: dict[Account, None] = {}
        self._due: dict[Account, None] = {}  # by the time they are due
        self._loop = asyncio.get_running_loop()

    # In.

    def mark(self, book: Book) -> None:
        """Say that `book` has changed. Cheap; call it from the loop's thread."""
        if book.waits_in == book.account:
            return
        if book.waits_in is not None:  # it has moved to another account meanwhile
            former = self.account(book.waits_in)
            self._wait_no_more(book, former)
            self._settle(former)
        account = self.account(book.account)
        book.waits_in = book.account
        if isinstance(book, DayBook):
            account.days[book] = None
        else:
            account.counters[book] = None
        if account not in self._due:
            account.due_at = self._loop.time() + COALESCE_S
            self._due[account] = None
            if len(self._due) == 1:
                self._wake()

    def add(self, ask: Ask, account: Account) -> None:
        """Ask with the next message of `account`."""
        account.asks.append(ask)
        self._asking[account] = None
        self._wake()

    def account(self, name: str) -> Account:
        """The account of that name; a new one is empty."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name)
        return account

    # Out.

    def next(self, room: int, now: float, *, in_a_hurry: bool) -> list[Account]:
        """Up to `room` accounts whose turn it is. `in_a_hurry`: books wait for no company."""
        accounts = [account for account in itertools.islice(self._asking, room) if account.retry_at <= now]
        for account in self._due:
            if len(accounts) >= room or (account.due_at > now and not in_a_hurry):
                break
            if account.retry_at <= now and account not in self._asking:
                accounts.append(account)
        return accounts

    def take(self, account: Account) -> tuple[list[DayBook], list[CounterBook], list[Ask]]:
        """What of `account` goes into one message: it waits no more. Say `is_back` when that is answered."""
        account.is_under_way = True
        size = 1 if account.one_by_one else MAX_DAYS
        days = list(itertools.islice(account.days, size))
        size = (1 if not days else 0) if account.one_by_one else MAX_COUNTERS
        counters = list(itertools.islice(account.counters, size))
        asks, account.asks = account.asks[:MAX_ASKS], account.asks[MAX_ASKS:]
        taken: list[Book] = [*days, *counters]
        for book in taken:
            self._wait_no_more(book, account)
        self._settle(account)
        return days, counters, asks

    def take_asks(self) -> list[Ask]:
        """All that is asked: nobody answers."""
        asks: list[Ask] = []
        for account in self._asking:
            asks += account.asks
            account.asks = []
        self._asking.clear()
        return asks

    def drop_books(self) -> None:
        """Nothing is to be told any more."""
        for account in list(self._accounts.values()):
            books: list[Book] = [*account.days, *account.counters]
            for book in books:
                self._wait_no_more(book, account)
            self._settle(account)

    def is_back(self, account: Account) -> None:
        """The message of `account` is dealt with, and what of it is to be sent again is marked."""
        account.is_under_way = False
        self._settle(account)

    def _settle(self, account: Account) -> None:
        """Put an account where it belongs, after something was taken from it."""
        if not account.asks:
            self._asking.pop(account, None)
        if not (account.days or account.counters):
            self._due.pop(account, None)
            if not (account.asks or account.is_under_way or account.one_by_one or account.retry_at):
                self._accounts.pop(account.name, None)

    def _wait_no_more(self, book: Book, account: Account) -> None:
        book.waits_in = None
        if isinstance(book, DayBook):
            account.days.pop(book, None)
        else:
            account.counters.pop(book, None)

    # What waits.

    @property
    def is_empty(self) -> bool:
        """Nothing is to be sent."""
        return all(account.is_empty for account in self._accounts.values())

    @property
    def is_asked(self) -> bool:
        """Somebody waits for an answer."""
        return bool(self._asking)

    @property
    def due_at(self) -> float | None:
        """When the books that have waited longest are due, in loop time; None: none waits."""
        return next(iter(self._due)).due_at if self._due else None

    @property
    def days(self) -> Iterator[DayBook]:
        """The day books that wait."""
        for account in self._accounts.values():
            yield from account.days

    def __repr__(self) -> str:
        return f"<Outbox {len(self._asking)} asking, {len(self._due)} with books>"
