"""Wire words, one file per family of operations: what counts as content, and what an absent count means."""

from collections.abc import Callable
from typing import NamedTuple

from meter_proxy.metering.dialects import chat, completions, embeddings
from meter_proxy.metering.dialects.wire import Choice
from meter_proxy.usage import Operation

Path = tuple[str | int, ...]


class Dialect(NamedTuple):
    """How one family of operations speaks."""

    has_content: Callable[[Choice], bool]  # does this choice of an event or a body hold generated text?
    spoken_at: tuple[Path, ...]  # where one choice's text stands in a plain content event, seen from the choice
    absent_output: int | None  # what a usage without an output count means; None: it is incomplete


DIALECTS: dict[Operation, Dialect] = {
    Operation.CHAT: Dialect(chat.has_content, chat.SPOKEN_AT, None),
    Operation.TEXT_COMPLETION: Dialect(completions.has_content, completions.SPOKEN_AT, None),
    Operation.EMBEDDINGS: Dialect(embeddings.has_content, (), 0),
}
