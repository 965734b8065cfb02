"""What is measured: each scenario is a load, and the unit that its CPU is divided by.

Models are the mock's: m-n<N>-d<D>[-j<J>] streams N content events, D ms apart, J to one write.
"""

from dataclasses import dataclass

EVENTS, REQUESTS, HANG_UPS = "events", "requests", "hang_ups"
COUNTING = "m-n200-d20-u"  # of the upstream that meter-proxy asks for a running usage, and takes it out again
FOREVER = "m-n100000"  # more events than a run has time for; the mock ends such streams when the run is over


@dataclass(frozen=True)
class Scenario:
    """One load; `options` are the load generator's."""

    name: str
    what: str  # in a few words, for tables
    per: str  # EVENTS, REQUESTS or HANG_UPS: what a unit of work is
    options: tuple[str, ...]
    lasts: float = 1.0  # the window, in units of --seconds
    streams_held: int = 0  # of the quiet ones: so many are opened first, on a proxy that has just started

    @property
    def unit(self) -> str:
        return {EVENTS: "chunk", REQUESTS: "request", HANG_UPS: "hang-up"}[self.per]

    @property
    def has_hang_ups(self) -> bool:
        """Then the books and the mock need not agree: what a client has seen is not what was on its way."""
        return self.per == HANG_UPS


def _scenario(name: str, what: str, per: str, options: str, *, lasts: float = 1.0, held: int = 0) -> Scenario:
    return Scenario(name, what, per, tuple(options.split()), lasts=lasts, streams_held=held)


_QUIET = f"--stream --hold --model {FOREVER}-d5000"
_LEAVES = f"--stream --model {FOREVER}-d2 --connections 32 --sources 16 --hang-up-after 3"
_LIGHT = "--stream --model m-n20-d10 --rate 10 --connections 8 --warm-up 1"  # by then all are connected
ALL = (
    _scenario("paced", "100 streams, a token every 20 ms", EVENTS, "--stream --model m-n200-d20 --connections 100"),
    _scenario(
        "running", "the same, each with the usage so far", EVENTS, f"--stream --model {COUNTING} --connections 100"
    ),
    _scenario("heavy", "200 streams, a token every 10 ms", EVENTS, "--stream --model m-n200-d10 --connections 200"),
    _scenario("burst", "16 streams without a pause", EVENTS, "--stream --model m-n100-d0 --connections 16"),
    _scenario("burst-joined", "the same, 16 events a write", EVENTS, "--stream --model m-n96-d0-j16 --connections 16"),
    _scenario("streams", "streams of one token, 16 connections", REQUESTS, "--stream --model m-n1-d0 --connections 16"),
    _scenario("json", "plain requests, 16 connections", REQUESTS, "--model m --connections 16"),
    _scenario("vision", "plain requests of 1 MB", REQUESTS, "--model m --connections 4 --body-bytes 1000000"),
    _scenario("new-connection", "a connection per request", REQUESTS, "--model m --reconnect --sources 16"),
    _scenario("hang-ups", "clients that leave after 3 tokens", HANG_UPS, _LEAVES),
    _scenario("latency", "about 2 streams at a time, open loop", EVENTS, _LIGHT, lasts=2.0),
    _scenario("quiet-1k", "1,000 streams, a token in 5 s", EVENTS, _QUIET, lasts=2.0, held=1000),
    _scenario("quiet-10k", "10,000 streams, a token in 5 s", EVENTS, _QUIET, lasts=2.0, held=10000),
)
BY_NAME = {scenario.name: scenario for scenario in ALL}
