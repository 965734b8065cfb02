"""Long work shows that it goes on: on stderr, and only on a terminal. Nothing of it stays behind."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EACH = 1000  # items between two looks at the bar: it costs nothing beside reading them


def shown(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield `items`, with a count of those so far beside `what` on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        for number, item in enumerate(items):
            if number % EACH == 0:
                bar.update(task, completed=number)
            yield item
