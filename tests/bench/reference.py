"""A fixed piece of work to compare a proxy's CPU time with: python -m tests.bench.reference

It does, without a proxy's code, what a proxy does with a chunk: a read, a look into it, a write; in plain Python and
with real sockets. When the machine is slow, this is, too. Prints CPU microseconds per turn. A change voids the records.
"""

import socket
import time

TURNS = 40_000
EVENT = (
    b'data: {"id":"chatcmpl-7Qk2mZr0vXxJ","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" tok"},"logprobs":null,"finish_reason":null}]}\n\n'
)


def turn_us() -> float:
    """CPU time of one turn, user and system."""
    near, far = socket.socketpair()
    counts: dict[bytes, int] = {}
    with near, far:
        began_at = time.process_time()
        for _ in range(TURNS):
            near.send(EVENT)
            data = far.recv(65536)
            start = data.find(b'"content":"')
            content = data[start + 11 : data.find(b'"', start + 11)]
            if data.endswith(b"\n\n") and b'"usage"' not in data:
                counts[content] = counts.get(content, 0) + 1
        return (time.process_time() - began_at) / TURNS * 1e6


if __name__ == "__main__":
    print(f"{turn_us():.4f}")
