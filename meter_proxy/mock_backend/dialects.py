"""How the servers that the mock can play differ, as one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class FinalUsage(Enum):
    """Where the usage of a whole stream stands."""

    IF_ASKED = "in an event of its own behind the finish, if `include_usage` asked for it"
    WITH_FINISH = "in the event with the finish reason, asked for or not"
    NEVER = "nowhere"


class RunningCount(Enum):
    """How a stream tells its count so far, per choice as the real servers do."""

    NEVER = "not at all"
    USAGE = "`usage` in every event, if `stream_options.continuous_usage_stats` asked for it"
    TIMINGS = "`timings` in every event with text, if `timings_per_token` asked for it"


@dataclass(frozen=True)
class Dialect:
    """One kind of server. `identity` maps paths beside /v1 to the JSON that tells what it is."""

    final_usage: FinalUsage = FinalUsage.IF_ASKED
    running_count: RunningCount = RunningCount.NEVER
    null_usage: bool = False  # `usage: null` in the other events when a final usage was asked for
    usage_per_choice: bool = False  # n > 1: a usage event for each choice, not one for all
    refuses_stream_options: bool = False
    compresses: bool = False  # gzip, whatever the request accepts
    identity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(null_usage=True),
    "vllm": Dialect(running_count=RunningCount.USAGE, identity={"/version": {"version": "0.11.0"}}),
    "sglang": Dialect(
        running_count=RunningCount.USAGE,
        identity={"/get_model_info": {"model_path": "mock", "tokenizer_path": "mock", "is_generation": True}},
    ),
    "llamacpp": Dialect(
        running_count=RunningCount.TIMINGS,
        usage_per_choice=True,
        identity={"/props": {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "model_path": "mock"}},
    ),
    "ollama": Dialect(identity={"/api/version": {"version": "0.12.6"}}),
    "deepseek": Dialect(final_usage=FinalUsage.WITH_FINISH, null_usage=True),
    "mistral": Dialect(final_usage=FinalUsage.WITH_FINISH, refuses_stream_options=True),
    "no-usage": Dialect(final_usage=FinalUsage.NEVER),
    "gzip": Dialect(compresses=True),
}
