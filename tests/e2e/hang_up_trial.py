"""500 streams, each hung up at a random event: three books of each exchange side by side.

    python -m tests.e2e.hang_up_trial --streams 500

starts the real mock backend (which keeps its own truth) and the real proxy, for each dialect, and prints a
table. For every exchange `client received <= billed <= backend generated` must hold in tokens; with running
usage the bill must be the truth, without it the number of content events that the backend had sent.
"""

import argparse
import asyncio
import json
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import BrokenOff, RawClient
from tests.support.proc import running_mock_backend, running_proxy
from tests.support.waiting import until_async

RUNNING_DIALECTS = ("vllm", "sglang", "llamacpp")
COUNTED_DIALECTS = ("openai", "ollama", "no-usage")
MAX_EVENTS = 24
AT_ONCE = 50


@dataclass
class Trial:
    """What one dialect's exchanges came to."""

    dialect: str
    streams: int = 0
    hung_up: int = 0
    received_events: int = 0
    received_tokens: int = 0
    billed_tokens: int = 0
    generated_tokens: int = 0
    content_events: int = 0
    wrong: list[str] = field(default_factory=list)

    def judge(self, received: "Received", record: dict[str, Any], truth: dict[str, Any]) -> None:
        """Compare one exchange's three books."""
        self.streams += 1
        self.hung_up += received.hung_up
        self.received_events += received.content_events
        self.received_tokens += received.words
        self.billed_tokens += record["output_tokens"]
        self.generated_tokens += truth["generated_tokens"]
        self.content_events += truth["content_events"]
        billed = record["output_tokens"]
        if record["basis"] == "counted":
            right = received.content_events <= billed == truth["content_events"] <= truth["generated_tokens"]
        else:
            right = received.words <= billed == truth["generated_tokens"]
        if record["outcome"] == "client_disconnected":
            expected = "running" if self.dialect in RUNNING_DIALECTS else "counted"
            right = right and record["basis"] in (expected, "none", "reported")  # reported: it ended in the drain
        if not right:
            self.wrong.append(f"{record['id']}: received {received} billed {record} generated {truth}")


@dataclass
class Received:
    """What one client got before it left."""

    id: str
    content_events: int = 0
    words: int = 0  # each is a token; some tokens make no word
    hung_up: bool = False


async def one_stream(url: str, chance: random.Random) -> Received:
    """Ask, read up to a random number of events, leave with FIN or RST."""
    leave_after = chance.randint(0, MAX_EVENTS)
    leave = chance.choice([RawClient.close_fin, RawClient.close_rst])
    ask = {
        "model": "mock-small",
        "messages": [{"role": "user", "content": "count for me"}],
        "stream": True,
        "max_tokens": chance.randint(1, 60),
        "n": chance.choice([1, 1, 1, 2]),
    }
    async with await RawClient.connect(url) as client:
        response = await client.request("POST", "/v1/chat/completions", ask, key=KEY)
        received = Received(response.headers["x-meter-request-id"])
        for _ in range(leave_after):
            try:
                event = await response.next_event()
            except BrokenOff:
                break
            if event is None:
                return received
            text = _text_of(event)
            received.content_events += bool(text)
            received.words += len(text.split())
        received.hung_up = True
        leave(client)
        return received


def _text_of(event: bytes) -> str:
    data = event.removeprefix(b"data: ").strip()
    if data == b"[DONE]":
        return ""
    return "".join(choice["delta"].get("content") or "" for choice in json.loads(data)["choices"])


async def try_dialect(dialect: str, streams: int, seed: int) -> Trial:
    """Run the trial against one dialect on processes of its own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        truth_file = directory / "truth.jsonl"
        async with running_mock_backend("--dialect", dialect, "--rate", "400", "--truth", truth_file) as backend:
            config = write_config(directory, basic_config(backend, directory, workers=2))
            async with running_proxy(config, env=ENVIRONMENT) as proxy:
                slots = asyncio.Semaphore(AT_ONCE)

                async def bounded(number: int) -> Received:
                    async with slots:
                        return await one_stream(proxy.url, random.Random(f"{seed}-{dialect}-{number}"))

                received = await asyncio.gather(*(bounded(number) for number in range(streams)))
                records = await _all_records(proxy.admin_url, streams)
        truths = [json.loads(line) for line in truth_file.read_text().splitlines()]
    trial = Trial(dialect)
    by_record = {record["id"]: record for record in records}
    by_truth = {truth["client_request_id"]: truth for truth in truths}
    assert len(by_record) == len(records) == streams, f"{len(records)} records of {streams} exchanges"
    assert len(truths) == streams, f"{len(truths)} truths of {streams} exchanges"
    for got in received:
        trial.judge(got, by_record[got.id], by_truth[got.id])
    return trial


async def _all_records(admin_url: str, count: int) -> list[dict[str, Any]]:
    async with await RawClient.connect(admin_url) as client:

        async def look() -> list[dict[str, Any]] | None:
            response = await client.request("GET", "/api/records?limit=100000")
            records: list[dict[str, Any]] = (await response.json())["data"]
            return records if len(records) >= count else None

        return await until_async(look, f"{count} records")


async def main() -> int:
    """Print the table; 1 if any exchange was billed wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500, help="per dialect")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print("dialect    streams hung_up  received    billed generated content_events  wrong")
    wrong = 0
    for dialect in (*RUNNING_DIALECTS, *COUNTED_DIALECTS):
        trial = await try_dialect(dialect, arguments.streams, arguments.seed)
        print(
            f"{dialect:10} {trial.streams:7} {trial.hung_up:7} {trial.received_tokens:9} {trial.billed_tokens:9} "
            f"{trial.generated_tokens:9} {trial.content_events:14} {len(trial.wrong):6}"
        )
        for line in trial.wrong:
            print("   ", line)
        wrong += len(trial.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
