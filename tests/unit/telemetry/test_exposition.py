"""The text format, read back by prometheus_client's own parser."""

import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meter_proxy.telemetry.exposition import Counter, Family, Gauge, Histogram


def parse(family: Family) -> Any:
    """The one family that `family` renders."""
    (parsed,) = text_string_to_metric_families(family.render())
    return parsed


def samples(family: Family) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, sorted labels) -> value."""
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in parse(family).samples}


@pytest.mark.parametrize(
    "family",
    [Counter("a_total", "What.", ("k",)), Gauge("a", "What.", ("k",)), Histogram("a", "What.", ("k",), (1.0,))],
    ids=["counter", "gauge", "histogram"],
)
def test_a_family_without_samples_has_its_help_and_type(family: Family) -> None:
    """Dashboards find every name from the start."""
    parsed = parse(family)
    assert (parsed.documentation, parsed.type, parsed.samples) == ("What.", family.kind, [])


@pytest.mark.parametrize("family", [Counter("a_total", "What."), Histogram("a", "What.", (), (1.0,))], ids=repr)
def test_a_counter_without_labels_begins_at_zero(family: Family) -> None:
    """`increase()` sees its first step."""
    assert all(value == 0 for value in samples(family).values())
    assert samples(family)


def test_a_counter_adds_up_per_combination_of_labels() -> None:
    """Also when the first amount is 0."""
    counter = Counter("tokens_total", "Tokens.", ("key", "type"))
    counter.add(("a", "input"), 0)
    counter.add(("b", "input"), 3)
    counter.add(("b", "input"), 4)
    assert samples(counter) == {
        ("tokens_total", (("key", "a"), ("type", "input"))): 0,
        ("tokens_total", (("key", "b"), ("type", "input"))): 7,
    }


def test_token_counts_are_exact() -> None:
    """No exponent and no rounding, up to 2^53 and in the text beyond."""
    counter = Counter("tokens_total", "Tokens.", ("key",))
    counter.add(("a",), 2**53)
    counter.add(("b",), 2**53 - 1)
    assert samples(counter)["tokens_total", (("key", "b"),)] == 2**53 - 1
    assert f" {2**53}\n" in counter.render()


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (10**18 + 1, "1000000000.000000001"), (10**10, "10")],
)
def test_costs_are_exact_decimal_fractions(nano_usd: int, text: str) -> None:
    """Nano-dollars / 10^9 without a detour through a float."""
    counter = Counter("cost_usd_total", "Cost.", (), nano=True)
    counter.add((), nano_usd)
    assert counter.render().endswith(f"\ncost_usd_total {text}\n")


def test_label_values_may_hold_anything() -> None:
    """Callers choose model names."""
    odd = 'a"b\\c\nd\u00e9\u2028{},='
    counter = Counter("a_total", 'Help with "quotes",\nlines and \\.', ("model",))
    counter.add((odd,), 1)
    assert samples(counter) == {("a_total", (("model", odd),)): 1}
    assert parse(counter).documentation == 'Help with "quotes",\nlines and \\.'


def test_an_empty_label_is_left_out() -> None:
    """Which is what it means."""
    counter = Counter("a_total", "A.", ("model", "error_type"))
    counter.add(("m", ""), 1)
    counter.add(("m", "timeout"), 2)
    assert set(samples(counter).values()) == {1, 2}
    assert 'a_total{model="m"} 1\n' in counter.render()


def test_a_gauge_shows_what_is_set() -> None:
    """Floats keep every digit."""
    gauge = Gauge("ratio", "Ratio.", ("rule",))
    gauge.values = {("a",): 0.1 + 0.2, ("b",): math.inf}
    assert samples(gauge) == {("ratio", (("rule", "a"),)): 0.1 + 0.2, ("ratio", (("rule", "b"),)): math.inf}


def test_histogram_buckets_are_cumulative_and_hold_their_bound() -> None:
    """A value at a bound belongs below it, one above all bounds only to +Inf."""
    histogram = Histogram("seconds", "Time.", ("stage",), (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.of(("chunk",)).observe(value)
    found = samples(histogram)
    stage = ("stage", "chunk")
    assert found["seconds_bucket", (("le", "0.1"), stage)] == 2
    assert found["seconds_bucket", (("le", "1.0"), stage)] == 3
    assert found["seconds_bucket", (("le", "+Inf"), stage)] == 4
    assert found["seconds_count", (stage,)] == 4
    assert found["seconds_sum", (stage,)] == pytest.approx(7.65)
