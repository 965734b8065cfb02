"""Members of a JSON object in place."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_proxy.metering import jsonbody
from meter_proxy.metering.jsonbody import DuplicateKey

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=6)


styles = st.sampled_from([{}, {"separators": (",", ":")}, {"separators": (", ", ":")}, {"indent": 1}, {"indent": "\t"}])


@given(objects, styles, st.booleans())
def test_each_member_is_found_where_it_stands(wire: dict[str, object], style: dict[str, Any], ascii_only: bool) -> None:
    """Names and values, whatever they hold and however they are spaced and escaped."""
    text = json.dumps(wire, ensure_ascii=ascii_only, **style).encode("utf-8", "surrogatepass")
    found = jsonbody.members(text)
    assert [member.name for member in found] == list(wire)
    for member in found:
        assert json.loads(text[member.value_start : member.value_end]) == wire[member.name]
        assert json.JSONDecoder().raw_decode(text[member.start :].decode())[0] == member.name


@given(objects)
def test_a_member_is_cut_out_with_one_comma(wire: dict[str, object]) -> None:
    """First, last, in the middle or alone: the rest is the object without it."""
    text = json.dumps(wire, ensure_ascii=False).encode("utf-8", "surrogatepass")
    for member in jsonbody.members(text):
        start, end = jsonbody.with_comma(text, member)
        assert json.loads(text[:start] + text[end:]) == {
            name: value for name, value in wire.items() if name != member.name
        }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":12,"a":1}', "a"),
        (b'{"a":1,"a":12}', "a"),
        (b'{"b":[],"a":"x","c":0,"a":"y"}', "a"),
        (b'{"model":"a","\\u006dodel":"b"}', "model"),
        (b'{"":1,"":2}', ""),
    ],
)
def test_a_key_that_stands_twice_is_found(text: bytes, name: str) -> None:
    """Also escaped, also with the same value."""
    with pytest.raises(DuplicateKey) as raised:
        jsonbody.members(text)
    assert raised.value.name == name


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"1", b'{"a":NaN}', b'{"a":1}x', b'{"a":1,}', b"{'a':1}", b'\xef\xbb\xbf{"a":1}']
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    """By the decoder, strictly."""
    with pytest.raises(msgspec.DecodeError):
        jsonbody.members(text)


def nested(levels: int) -> bytes:
    """An object of so many levels."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("text", "too_deep"),
    [
        (nested(128), False),
        (nested(129), True),
        (b'{"a":[' + b"{}," * 500 + b"{}]}", False),
        (b'{"a":"' + b"[" * 500 + b'"}', False),
        (b'{"a":"' + b'\\"[' * 500 + b'"}', False),
        (b'{"a":[' + b"[]," * 200_000 + b"1]}", True),
        (b'{"a":"' + b"[]," * 200_000 + b'"}', False),
        (b'{"a":"\\\\","b":' + b"[" * 200 + b"]" * 200 + b"}", True),
        (b'{"a":"' + b"]" * 200 + b'","b":' + b"[" * 128 + b"]" * 128 + b"}", True),
    ],
)
def test_depth_is_bounded_and_brackets_in_strings_do_not_count(text: bytes, too_deep: bool) -> None:
    """Neither way: they make nothing deeper, and hide nothing."""
    assert jsonbody.is_too_deep(text) is too_deep


def test_a_value_is_found_below_the_only_element_of_an_array() -> None:
    """Its span is that of the value's own bytes."""
    text = b'{ "x": [ {"y" : {"z": "v\\"w" }} ] }'
    start, end = jsonbody.span_at(text, ("x", 0, "y", "z"))
    assert text[start:end] == b'"v\\"w"'
    for path in (("x", 0, "q"), ("x", 1), ("q",)):
        with pytest.raises(LookupError):
            jsonbody.span_at(text, path)
    with pytest.raises(msgspec.DecodeError):
        jsonbody.span_at(b'{"x":[{"y":1},{"y":2}]}', ("x", 0, "y"))
