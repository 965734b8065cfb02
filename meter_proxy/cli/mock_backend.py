"""`meter-proxy mock-backend`: an OpenAI-compatible fake upstream that knows what it really generated."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from meter_proxy.mock_backend import DIALECTS, MockBackend, TruthFile

EXAMPLES = (
    "meter-proxy mock-backend",
    "meter-proxy mock-backend --rate 20 --truth truth.jsonl",
    "meter-proxy mock-backend --dialect vllm --tokens-per-event 1",
)


def command(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0 takes a free one.")] = "127.0.0.1:8000",
    rate: Annotated[
        float, typer.Option(metavar="TOKENS_PER_S", min=0, help="Per stream; 0 is as fast as possible.")
    ] = 50.0,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="Append what was really generated, one JSON line per request."
        ),
    ] = None,
    dialect: Annotated[
        str, typer.Option(metavar="NAME", help=f"The server to play: {', '.join(DIALECTS)}.")
    ] = "openai",
    tokens_per_event: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="The most tokens that one event holds; 1 makes counting events exact."),
    ] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, other words and other events.")] = 0,
) -> None:
    """Run a fake OpenAI-compatible backend. It needs no GPU.

    A request can ask for trouble by headers: x-mock-tokens: N; x-mock-cached-tokens: N; x-mock-first-byte-ms: N;
    x-mock-status: CODE; x-mock-fault: error@K, reset@K, close@K or stall@K, after K events with text.
    """
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter("expected HOST:PORT, such as 127.0.0.1:8000", param_hint="--listen")
    if dialect not in DIALECTS:
        raise typer.BadParameter(f"{dialect!r} is not one of {', '.join(DIALECTS)}", param_hint="--dialect")
    witness = TruthFile(truth) if truth is not None else None
    backend = MockBackend(
        host.strip("[]"),
        int(port),
        dialect=dialect,
        rate=rate,
        tokens_per_event=tokens_per_event,
        seed=seed,
        witness=witness.append if witness is not None else None,
    )
    try:
        asyncio.run(_serve(backend))
    finally:
        if witness is not None:
            witness.close()


async def _serve(backend: MockBackend) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for which in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(which, stop.set)
    async with backend:
        print(f"mock-backend: serving {backend.url}", flush=True)
        await stop.wait()
