"""HTTP in, HTTP out.

    front.py        connections of our own server: the lane for plain requests (plain.py), aiohttp for the rest
    gateway.py      the front desk: identify, admit, hand over
    exchange.py     the story of one request: forward, relay, settle
    inbound.py      client request -> Call; all limits on input
    relay.py        the tee: upstream bytes -> meter -> client
    upstream.py     connections to an upstream; http1.py reads its responses
    client.py       what an exchange needs of its client, and the way past aiohttp to its transport
    watch.py        time-outs, one timer for all that have the same
    settlement.py   an exchange's admission and record; what is billed: metering/billing.py
    identity.py     can this upstream count while it streams?   (fetch.py asks it)
    refusals.py     upstreams that refuse our request for usage
    headers.py, redaction.py, replies.py, routes.py, deadline.py

Decisions are made in synchronous code; only waiting is asynchronous.
"""
