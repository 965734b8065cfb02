"""Query parameters of the admin listener: each known, at most once, and understood, or a 400 that names it."""

import time

from aiohttp import web

from meter_proxy.ledger.totals import parse_by, parse_since

LAST_INSTANT = 253_402_300_799.0  # 9999-12-31T23:59:59Z: what a calendar can hold
MAX_OFFSET = 1_000_000_000


class BadParameter(Exception):
    """A query parameter that cannot be used."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Query:
    """The query of a request; an empty value is as none. Every method raises `BadParameter`."""

    def __init__(self, request: web.Request, *known: str) -> None:
        """Raises `BadParameter` for a parameter that is not `known`, or comes twice."""
        self._values: dict[str, str] = {}
        seen: set[str] = set()
        for name, value in request.query.items():
            if name not in known:
                raise BadParameter(name, f"There is no parameter {name!r} here, only {', '.join(known)}.")
            if name in seen:
                raise BadParameter(name, f"{name!r} is given twice.")
            seen.add(name)
            if value:
                self._values[name] = value

    def text(self, name: str) -> str | None:
        """What was given; None if nothing was."""
        return self._values.get(name)

    def number(self, name: str, default: int, *, least: int = 1, most: int) -> int:
        """A whole number."""
        text = self._values.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 11 and least <= int(text) <= most):
            raise BadParameter(name, f"{name} must be a whole number from {least} to {most}.")
        return int(text)

    def one_of(self, name: str, *choices: str) -> str:
        """One of these words; the first, unless another one was given."""
        word = self._values.get(name, choices[0])
        if word not in choices:
            raise BadParameter(name, f"{name} must be one of {', '.join(choices)}.")
        return word

    def since(self) -> float:
        """The parameter `since`, in Unix seconds; 0: the beginning."""
        text = self._values.get("since")
        if text is None:
            return 0.0
        try:
            return min(max(0.0, parse_since(text, time.time())), LAST_INSTANT)
        except ValueError as exc:
            raise BadParameter("since", str(exc)) from exc

    def by(self, default: str) -> tuple[str, ...]:
        """The parameter `by`: columns."""
        try:
            return parse_by(self._values.get("by", default))
        except ValueError as exc:
            raise BadParameter("by", str(exc)) from exc
