"""What a PromQL expression asks for, by a real parser."""

from typing import NamedTuple

import promql_parser

# In place of Grafana's built-in variables, so that an expression can be parsed; told apart by their lengths.
RATE_INTERVAL_S, RANGE_S = 61, 3601
BUILT_IN = {"__rate_interval": f"{RATE_INTERVAL_S}s", "__range": f"{RANGE_S}s", "__interval": "1s"}


class Selector(NamedTuple):
    """One choice of series in an expression."""

    metric: str
    matchers: dict[str, tuple[str, str]]  # label -> operator, value
    range_s: int | None  # None: an instant vector
    callers: list[str]  # the functions around it, the innermost first


def selectors(expr: str) -> list[Selector]:
    """All of them. ValueError if the expression is not PromQL; it must hold no `$` any more but in strings."""
    found: list[Selector] = []
    around: list[promql_parser.Expr] = []

    def enter(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matrix = around[-1] if around and isinstance(around[-1], promql_parser.MatrixSelector) else None
            callers = [one.func.name for one in reversed(around) if isinstance(one, promql_parser.Call)]
            matchers = {m.name: (_operator(m.op), m.value) for m in node.matchers.matchers}
            range_s = None if matrix is None else int(matrix.range.total_seconds())
            found.append(Selector(node.name or "", matchers, range_s, callers))
        around.append(node)

    def leave(node: promql_parser.Expr) -> None:
        around.pop()

    promql_parser.walk(promql_parser.parse(expr), enter, leave)
    return found


def _operator(op: promql_parser.MatchOp) -> str:
    return next(sign for name, sign in _SIGNS if op == getattr(promql_parser.MatchOp, name))


_SIGNS = (("Equal", "="), ("NotEqual", "!="), ("Re", "=~"), ("NotRe", "!~"))
