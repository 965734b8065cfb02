"""HTTP in, HTTP out.

    gateway.py      the front door: identify, admit, hand over
    exchange.py     the story of one request: forward, relay, settle
    inbound.py      client request -> Call; all limits on input
    relay.py        the tee: upstream bytes -> meter -> client
    upstream.py     connections to an upstream; http1.py reads its responses
    client.py       the way past aiohttp to the client's transport
    settlement.py   an exchange's admission and record; what is billed: metering/billing.py
    identity.py     can this upstream count while it streams?   (fetch.py asks it)
    refusals.py     upstreams that refuse our request for usage
    headers.py, redaction.py, replies.py, routes.py, deadline.py

Decisions are made in synchronous code; only waiting is asynchronous.
"""
