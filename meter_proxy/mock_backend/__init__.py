"""A fake OpenAI-compatible upstream that knows what it really generated.

For the demo, for trying a configuration without a GPU, and as the witness in tests: it writes down the
truth about each answer (`Truth`), counted where the tokens are made. It shares no counting code with
the meter, so that both cannot be wrong in the same way; an import contract keeps it so.

    dialects.py  how the servers that it can play differ, as one table
    asked.py     a request as the mock understands it, `x-mock-*` headers included
    plan.py      what will be generated for it: steps, each one event's worth
    wire.py      the JSON of chunks and answers
    truth.py     what was really generated and sent, one JSON line per request
    answering.py one answer as it is generated: pace, faults, hang-ups, usage
    server.py    MockBackend: the HTTP server
"""

from meter_proxy.mock_backend.dialects import DIALECTS
from meter_proxy.mock_backend.server import MockBackend
from meter_proxy.mock_backend.truth import Truth, TruthFile

__all__ = ["DIALECTS", "MockBackend", "Truth", "TruthFile"]
