"""The books: who used what, durable, local and exact; Redis is brought in line with them, and grants quota.

The truth is the journal of each worker; everything else is derived from it and may be lost:

    reserve -> grants.py     quota for an exchange: asked of Redis, or of credit that this worker holds
               counters.py   one quota counter, as this worker sees it
    admit   -> slots.py      what is in flight, in mapped memory: counted there before it is forwarded
               admission.py  ... and by value all that its record needs
    settle  -> journal.py    one line per settled exchange, append-only: the commit point (segments.py: the files)
            -> labels.py     which model names have a total of their own, the same in every worker and view
            -> books.py      absolute totals per account, key, UTC day and model, and per quota counter
            -> sync.py       brings the books to Redis by absolute state, and fetches grants (messages.py, sync.lua,
                             store.py, cluster.py); outbox.py: what waits; leases.py: what is held, kept alive
    identity.py              which journal a directory writes now, and the how-manieth time
    checkpoint.py            the books up to a position, so that a start replays minutes, not months
    recovery.py              the slots of a killed process become records, once
    retention.py             old segments are archived and removed; their totals stay
    former.py                journals that nobody writes any more are brought to Redis, too
    embedded.py              the private Valkey that serves when no Redis is configured
    reading.py, totals.py    the records and totals, read by anybody, also beside a running `serve`
    units.py                 rules that would read a counter in another unit than it was counted in
    audit.py                 the journals compared with Redis

Invariants: what is in Redis was in a journal first; sending a total twice, late or out of order changes
nothing; settling never waits for Redis; what was delivered is billed though its process was killed; what a process
held of a quota ends with it.

No import here leads to the Redis client; only `store.py` and `cluster.py` know it.
"""

from meter_proxy.ledger.ledger import Ledger

__all__ = ["Ledger"]
