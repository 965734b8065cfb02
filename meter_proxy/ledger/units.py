"""Which rules of a configuration would go on with a counter that holds another unit.

Only this state directory is asked: Redis keeps no unit, so what other machines have counted there is not known.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from meter_proxy.config.faults import Finding, Loc
from meter_proxy.config.schema import Config
from meter_proxy.config.units import placed_rules
from meter_proxy.errors import DamagedJournal
from meter_proxy.ledger.admission import read_admission
from meter_proxy.ledger.checkpoint import load
from meter_proxy.ledger.reading import journals
from meter_proxy.ledger.slots import read_live
from meter_proxy.quota.charge import KEY_HOLDER, Charge
from meter_proxy.quota.windows import window_at

_log = logging.getLogger("meter_proxy.ledger")


def held_units(config: Config, now: float) -> list[Finding]:
    """The rules of `config` whose counters hold another unit, in a window that is not over at `now`; each place once.

    Reads beside a running `serve`, or without one, and never writes.
    """
    rules = {(rule.holder, rule.owner, rule.quota.rule_id): rule for rule in placed_rules(config)}
    found: dict[Loc, Finding] = {}
    for owner, charge in _charged(config.state_dir) if rules else ():
        rule = rules.get((charge.holder, owner, charge.rule))
        if rule is None or rule.quota.unit == charge.unit:
            continue
        window = window_at(rule.quota.per, rule.quota.timezone, now).id
        # Names of windows of one length are in the order of time; those of other lengths are other counters.
        if len(charge.window) == len(window) and charge.window >= window:
            found.setdefault(rule.loc, rule.refused(charge.unit))
    return list(found.values())


def _charged(state_dir: Path) -> Iterator[tuple[str, Charge]]:
    """The counters in use, each with the id of its owner: those of the books, and of what is in flight."""
    for journal in journals(state_dir):
        try:
            books = load(journal, strict=False).books
        except (OSError, DamagedJournal) as exc:
            _log.warning("what %s holds is not compared with the rules: %s", journal, exc)
            continue
        for book in books.counters:
            if book.used:
                yield book.owner, Charge(book.holder, book.rule, book.window, book.unit, book.ends_at)
    for worker in state_dir.glob("w*"):
        try:
            live = read_live(worker)
        except OSError as exc:  # another user's, as a rule
            _log.warning("what %s holds is not compared with the rules: %s", worker, exc.strerror)
            continue
        for progress in live:
            try:
                admission = read_admission(progress.text)
            except ValueError:
                continue  # whoever settles it says so
            for charge in admission.charges:
                yield admission.key if charge.holder == KEY_HOLDER else admission.account, charge
