"""The rig: real sockets, real servers, and peers that misbehave on command.

    wire.py      HTTP/1.1 framing, byte exact, for both ends of the rig
    httpraw.py   RawClient: a client that sends partial requests, reads event by event, hangs up as it likes
    upstream.py  ScriptedUpstream: an upstream that does what a test's script says, and remembers what it got
    harms.py     ready scripts, the good ones and those named after the harm they do
    answers.py   bodies in OpenAI's shapes to send from scripts
    servers.py   redis-server, valkey-server, prometheus as child processes on loopback
    proc.py      the command `meter-proxy` as a child process
    config.py    the YAML for it
    dashboards.py, promql.py   the checked-in dashboards and what their queries ask for
    waiting.py   wait for a condition, never for a time

Nothing here imports the product, except that `proc.py` runs it: the rig must not agree with a mistake.
All waits are bounded; a wait that ends without its condition says what it waited for.
"""
