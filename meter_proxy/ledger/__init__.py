"""The books: who used what, durable, local and exact; Redis is brought in line with them.

The truth is the journal of each worker; everything else is derived from it and may be lost:

    admit  -> slots.py      what is in flight, in mapped memory: counted there before it is forwarded
              admission.py  ... and by value all that its record needs
    settle -> journal.py    one line per settled exchange, append-only: the commit point
           -> labels.py     which model names have a total of their own, the same in every worker and view
           -> books.py      absolute totals per account, key, UTC day and model
           -> sync.py       brings the books to Redis by absolute state (sync.lua, store.py)
    recovery.py             the slots of a killed process become records, once
    former.py               the journals of former incarnations, brought to Redis too
    embedded.py             the private Valkey that serves when no Redis is configured
    reading.py              the records and totals, read by anybody, also beside a running `serve`

Invariants: what is in Redis was in a journal first; sending a total twice, late or out of order changes
nothing; settling never waits for Redis; what was delivered is billed though its process was killed. What this
version does not do: survive a power loss to the last record (no fdatasync).

No import here leads to the Redis client; only `store.py` knows it.
"""

from meter_proxy.ledger.ledger import Ledger

__all__ = ["Ledger"]
