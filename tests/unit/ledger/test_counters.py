"""Credit: enough that nearly nobody need be asked, none where nobody comes."""

import random

import pytest

from meter_proxy.ledger.books import CounterBook
from meter_proxy.ledger.counters import IDLE_TICKS, Counter
from meter_proxy.ledger.messages import Answer, Ask, Part
from meter_proxy.quota.charge import Unit

FAR = 10**15
TICK_S, COALESCE_S, STEP_S = 0.1, 0.05, 0.001


def counter(limit: int = FAR) -> Counter:
    made = Counter(CounterBook("w0", "alice", "k", "alice", "tokens-day", "20260131", Unit.TOKENS, 1))
    made.limit = limit
    return made


class Worker:
    """One counter far from its limit, its ticks and messages, in steps of a millisecond."""

    def __init__(self, seed: int) -> None:
        self.counter = counter()
        self.asked = self.granted = 0
        self._chance = random.Random(seed)
        self._now = 0.0
        self._tick_at = TICK_S
        self._message_at = float("inf")

    def serve(self, rate: float, seconds: float, amount: int = 700) -> float:
        """Admit at `rate` per second; the share that needed no asking."""
        self.asked = self.granted = 0
        ends_at = self._now + seconds
        due_at = self._now + self._chance.expovariate(rate)
        while self._now < ends_at:
            self._now += STEP_S
            while due_at < self._now:
                self._admit(self._chance.randrange(amount // 2, amount * 2))
                due_at += self._chance.expovariate(rate)
            if self._now >= self._message_at:
                self._send()
            if self._now >= self._tick_at:
                self._tick_at += TICK_S
                if self.counter.tick() or self.counter.credit:
                    self._message_at = min(self._message_at, self._now + COALESCE_S)
        return self.granted / max(1, self.granted + self.asked)

    def _admit(self, amount: int) -> None:
        if self.counter.covers(amount):
            self.counter.take_credit(amount)
            self.granted += 1
        else:
            self.counter.credit = 0  # all is granted anew, with what it wishes for
            self.counter.take(amount)
            self.asked += 1
            self._send()

    def _send(self) -> None:
        self._message_at = float("inf")
        self.counter.credit += max(0, self.counter.wish - self.counter.credit)


@pytest.mark.parametrize(("rate", "share"), [(15, 0.9), (25, 0.97), (100, 0.99), (1_000, 0.999), (10_000, 0.999)])
def test_at_a_steady_rate_nearly_all_is_granted_from_credit(rate: int, share: float) -> None:
    """Also at the 25 streams a second of one busy user; amounts differ by a factor of four."""
    for seed in range(5):
        worker = Worker(seed)
        worker.serve(rate, 1)
        assert worker.serve(rate, 10) >= share


def test_credit_follows_a_rate_that_grows_a_hundredfold_at_once() -> None:
    worker = Worker(1)
    worker.serve(100, 1)
    assert worker.serve(10_000, 1) >= 0.99


def test_a_pause_of_a_few_ticks_loses_no_credit() -> None:
    worker = Worker(2)
    worker.serve(100, 1)
    worker.serve(0.0001, IDLE_TICKS * TICK_S - 0.05)
    assert worker.serve(100, 0.1) == 1.0


def test_who_comes_twice_a_second_gets_no_credit() -> None:
    """A message per tick would cost more than it saves."""
    worker = Worker(3)
    assert worker.serve(2, 10) == 0.0


def test_credit_that_nobody_takes_is_given_back() -> None:
    worker = Worker(4)
    worker.serve(1_000, 1)
    assert worker.counter.credit > 0
    worker.serve(0.0001, (IDLE_TICKS + 1) * TICK_S + COALESCE_S)
    assert (worker.counter.credit, worker.counter.wish) == (0, 0)
    assert worker.counter.is_idle


def test_what_a_store_forgot_is_not_free_again() -> None:
    """And what we used since is known on top of it."""
    one = counter(1_000)
    one.told(used=800, reserved=50, own_used=300, own_reserved=0)
    one.told(used=100, reserved=0, own_used=100, own_reserved=0)
    one.book.used = 130
    assert (one.known_used, one.remaining) == (830, 170)


def test_credit_that_came_meanwhile_answers_who_waits() -> None:
    """All parts, or none of it; who only wants to know is not answered."""
    answers: list[Answer] = []
    first, second = counter(), counter()
    ask = Ask([Part(first, 1, 0), Part(second, 10, 2)], 1, 100, lambda _, answer: answers.append(answer), 0.0)
    first.credit, second.credit = 1, 209
    assert not ask.answer_from_credit()
    second.credit = 210
    assert ask.answer_from_credit()
    assert answers == [Answer(100, from_credit=True)]
    assert not Ask([Part(first, 0, 0)], 0, 0, lambda _, answer: answers.append(answer), 0.0).answer_from_credit()


def test_credit_does_not_answer_what_is_used_up_meanwhile() -> None:
    one = counter(1_000)
    one.credit = 500
    one.told(used=900, reserved=500, own_used=0, own_reserved=500)
    ask = Ask([Part(one, 200, 0)], 0, 0, lambda _, answer: pytest.fail("it is for Redis to say"), 0.0)
    assert not ask.answer_from_credit()
