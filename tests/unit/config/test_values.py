"""Values as people write them."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from meter_proxy.config import values


@pytest.mark.parametrize(
    ("read", "written", "meant"),
    [
        (values.count, "20", 20),
        (values.count, "200k", 200_000),
        (values.count, "1.5M", 1_500_000),
        (values.count, "20_000", 20_000),
        (values.count, 7, 7),
        (values.size_bytes, "512", 512),
        (values.size_bytes, "64K", 65_536),
        (values.size_bytes, "20M", 20_971_520),
        (values.size_bytes, "1G", 1_073_741_824),
        (values.duration_s, "250ms", 0.25),
        (values.duration_s, "10s", 10.0),
        (values.duration_s, "1.5m", 90.0),
        (values.duration_s, "6h", 21_600.0),
        (values.duration_s, "400d", 34_560_000.0),
        (values.money_usd, "2.50", Decimal("2.50")),
        (values.money_usd, "0.000000001", Decimal("1E-9")),
        (values.money_usd, "0", Decimal(0)),
        (values.money_usd, "1k", Decimal(1000)),
        (values.fraction, "80%", 0.8),
        (values.fraction, "0.8", 0.8),
        (values.fraction, "0%", 0.0),
        (values.fraction, "100%", 1.0),
        (values.switch, True, True),
        (values.switch, "false", False),
        (values.instant, "2027-01-01T00:00:00Z", datetime(2027, 1, 1, tzinfo=UTC)),
        (values.instant, "2027-01-01T08:00:00+08:00", datetime(2027, 1, 1, tzinfo=UTC)),
        (values.instant, "2027-01-01", datetime(2027, 1, 1, tzinfo=UTC)),
        (values.zone, "UTC", "UTC"),
        (values.zone, "Asia/Shanghai", "Asia/Shanghai"),
    ],
)
def test_what_people_write_means_what_they_mean(read: Callable[[Any], Any], written: Any, meant: Any) -> None:
    """Each way of writing has one exact meaning."""
    assert read(written) == meant


@pytest.mark.parametrize(
    ("read", "written", "message"),
    [
        (values.count, "0", "must be at least 1"),
        (values.count, "-5", "must be at least 1"),
        (values.count, "1.5", "must be a whole number"),
        (values.count, "20K", "must be a whole number such as 20, 200k, 1.5M or 20_000"),
        (values.count, "1e3", "must be a whole number such as 20, 200k, 1.5M or 20_000"),
        (values.count, "nan", "must be a whole number such as 20, 200k, 1.5M or 20_000"),
        (values.count, "٣", "must be a whole number such as 20, 200k, 1.5M or 20_000"),
        (values.count, True, "must be a whole number such as 20, 200k, 1.5M or 20_000, not true or false"),
        (values.count, ["1"], "must be a whole number such as 20, 200k, 1.5M or 20_000, not a list"),
        (values.count, "9" * 400, "must be at most 9007199254740992"),
        (values.size_bytes, "20MB", "must be a size such as 64K, 20M or 1G"),
        (values.duration_s, "10", "must be a duration with its unit, such as 250ms, 10s, 5m, 6h or 400d"),
        (values.duration_s, "0s", "must be above 0"),
        (values.money_usd, "-1", "must not be negative"),
        (values.money_usd, "$5", "must be an amount of US dollars such as 2.50"),
        (values.fraction, "120%", "must be between 0% and 100%"),
        (values.fraction, "80", "must be between 0% and 100%"),
        (values.switch, "maybe", "must be true or false"),
        (values.instant, "2027-01-01T00:00:00", "has no time zone; write it as 2027-01-01T00:00:00Z"),
        (values.instant, "tomorrow", "must be a moment such as 2027-01-01T00:00:00Z"),
        (values.instant, ["2027-01-01"], "must be a moment such as 2027-01-01T00:00:00Z"),
        (values.zone, "asia/shangai", "is not a time zone of the IANA database; did you mean 'Asia/Shanghai'?"),
        (values.text, True, "must be text; put it in quotes"),
        (values.text, "", "must not be empty"),
        (values.identifier, "a b", "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        (values.identifier, "a" * 65, "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        (values.identifier, "a\n", "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        (values.model_name, "a b", "must be 1 to 256 printable characters without blanks"),
        (values.one_of("cancel", "drain"), "cancle", "must be one of cancel, drain; did you mean 'cancel'?"),
        (values.one_of("cancel", "drain"), "zzz", "must be one of cancel, drain"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_what_to_write(
    read: Callable[[Any], Any], written: Any, message: str
) -> None:
    """A wrong value gives one sentence that says what would be right."""
    with pytest.raises(ValueError) as caught:
        read(written)
    assert str(caught.value) == message


@pytest.mark.parametrize("written", ["localtime", "posix/UTC", "../../etc/passwd", "Asia", "CST8"])
def test_a_zone_is_one_of_the_iana_database(written: str) -> None:
    """What only this machine knows by that name is refused."""
    with pytest.raises(ValueError, match="is not a time zone of the IANA database"):
        values.zone(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${A}", "one"),
        ("x${A}y${A}", "xoneyone"),
        ("${EMPTY}", ""),
        ("${EMPTY:-two}", "two"),
        ("${NONE:-}", ""),
        ("${NONE:-http://h:1/v1}", "http://h:1/v1"),
        ("$A and $$", "$A and $$"),
        ("$${A}", "${A}"),
        ("${NESTED}", "${A}"),
    ],
)
def test_variables_are_replaced_once(written: str, meant: str) -> None:
    """`${VAR}` and `${VAR:-default}` as in a shell; what a variable holds is left as it is."""
    assert values.interpolate(written, {"A": "one", "EMPTY": "", "NESTED": "${A}"}) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${NONE}", "environment variable NONE is not set; set it, or write ${NONE:-default}"),
        ("${1A}", "broken variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${"),
        ("${A", "broken variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${"),
        ("${}", "broken variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${"),
    ],
)
def test_missing_and_broken_variables_are_named(written: str, message: str) -> None:
    """Nothing is silently replaced by nothing."""
    with pytest.raises(ValueError) as caught:
        values.interpolate(written, {"A": "one"})
    assert str(caught.value) == message
