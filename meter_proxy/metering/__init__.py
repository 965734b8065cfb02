"""Bytes in, usage out: the pure part that decides what an exchange used.

    meter.py      meter_for(): the right meter for an answer; the interface of them all
    stream.py     StreamMeter: Server-Sent Events; body.py: BodyMeter: one JSON document
    sniff.py      an answer whose type says nothing; coded.py: one that came compressed
    tally.py      everything an answer said about tokens, as one Reading
    template.py   plain content events are known by their bytes, without parsing them, from stream to stream
    sse.py        the framing of events; jsonbody.py: members of a JSON object, found in place
    request.py    what was asked: Asked; injection.py: what we add to it, and take out of the answer
    pricing.py    Usage x price -> integer nano-dollars
    dialects/     the wire words of each family; nothing above this folder knows them

No I/O, no clock, no asyncio. No meter raises because of what an upstream sent, and none forwards a byte
that the upstream did not send.
"""
