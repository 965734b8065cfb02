"""Can this upstream count while it streams? Asked of its own identity endpoints, never guessed from answers.

| endpoint | who answers | running usage |
| --- | --- | --- |
| `/version` -> `{"version": "..."}` | vLLM, TensorRT-LLM | `stream_options.continuous_usage_stats` |
| `/get_model_info` -> `{"model_path": ...}` | SGLang | the same |
| `/props` -> `{"default_generation_settings": ...}` | llama.cpp | `timings_per_token` |
"""

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from meter_proxy.errors import UpstreamError
from meter_proxy.gateway.fetch import fetch
from meter_proxy.gateway.upstream import UpstreamPool
from meter_proxy.metering.injection import RunningUsage
from meter_proxy.tasks import spawn

KNOWN_FOR_S = 600.0  # servers are restarted as something else, but not often
UNREACHED_FOR_S = 5.0
ANSWER_WITHIN_S = 2.0
FIRST_CALLER_WAITS_S = 1.0  # later callers find the answer ready

_SIGNS = (
    ("/version", "version", RunningUsage.VLLM),
    ("/get_model_info", "model_path", RunningUsage.VLLM),
    ("/props", "default_generation_settings", RunningUsage.LLAMACPP),
)
_SAID_BY_OPERATOR = {
    "off": RunningUsage.OFF,
    "vllm": RunningUsage.VLLM,
    "sglang": RunningUsage.VLLM,
    "llamacpp": RunningUsage.LLAMACPP,
}


class Identities:
    """What is known of each upstream. `clock` is a monotonic clock in seconds."""

    def __init__(self, pools: Mapping[str, UpstreamPool], clock: Callable[[], float]) -> None:
        self._pools = pools
        self._clock = clock
        self._known: dict[str, tuple[RunningUsage, float]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def forget(self, name: str) -> None:
        """The upstream is another one now."""
        self._known.pop(name, None)

    def known_running_usage(self, name: str) -> RunningUsage | None:
        """What to ask of upstream `name`; None: nobody has said so yet, or it is time to ask again."""
        said = self._pools[name].config.running_usage
        if said != "auto":
            return _SAID_BY_OPERATOR[said]
        known = self._known.get(name)
        return known[0] if known is not None and self._clock() < known[1] else None

    async def running_usage(self, name: str) -> RunningUsage:
        """What to ask of upstream `name`; OFF while it is not known. Waits only for the first answer."""
        current = self.known_running_usage(name)
        if current is not None:
            return current
        known = self._known.get(name)
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = spawn(self._ask(name), name=f"identify upstream {name}")
        if known is None:
            await asyncio.wait({task}, timeout=FIRST_CALLER_WAITS_S)
            known = self._known.get(name)
        return known[0] if known is not None else RunningUsage.OFF

    async def _ask(self, name: str) -> None:
        pool = self._pools[name]
        root = pool.base_path.removesuffix("/v1")
        found, known_for_s = RunningUsage.OFF, KNOWN_FOR_S
        try:
            for path, member, means in _SIGNS:
                status, body = await fetch(pool, root + path, timeout_s=ANSWER_WITHIN_S)
                if status == 200 and _has_member(body, member):
                    found = means
                    break
        except UpstreamError:
            known_for_s = UNREACHED_FOR_S
        finally:
            self._asking.pop(name, None)
        self._known[name] = (found, self._clock() + known_for_s)


def _has_member(body: bytes, member: str) -> bool:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and member in document
