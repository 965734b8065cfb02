"""Events known by their bytes: a template finds what parsing would find, and cannot be fooled."""

import json

import pytest

from meter_proxy.metering.dialects import DIALECTS
from meter_proxy.metering.template import Shape, Template, shape_of
from meter_proxy.usage import Operation

SPOKEN_AT = DIALECTS[Operation.CHAT].spoken_at


def event(payload: str, line_end: str = "\n\n") -> bytes:
    return f"data: {payload}{line_end}".encode()


def plain(content: str, rest: str = "") -> bytes:
    """A content event; `content` is the inside of the JSON string, as it is."""
    return event(
        '{"id":"1","choices":[{"index":0,"delta":{"content":"' + content + '"},"finish_reason":null}]' + rest + "}"
    )


def shape(raw: bytes, usage_name: str | None = None) -> Shape | None:
    return shape_of(raw, len(raw.rstrip(b"\r\n")), SPOKEN_AT, usage_name)


def template(raw: bytes, usage_name: str | None = None) -> Template:
    found = shape(raw, usage_name)
    assert found is not None
    return Template(found)


def finds(known: Template, raw: bytes) -> bool:
    """The event at the start of `raw` is known, and it is the whole of it."""
    found = known.find(raw, 0)
    return found is not None and found.end() == len(raw)


@pytest.mark.parametrize(
    "text", ["B", "  ", "春天", "\\n", "\\\\", 'a\\"b', "\\u00e9", "data: [DONE]", "{}[],:", "'", "x" * 9999]
)
def test_the_same_event_with_another_text_is_known(text: str) -> None:
    """Whatever stands in the string, escaped quotes and backslashes included."""
    assert finds(template(plain("A")), plain(text))


@pytest.mark.parametrize(
    "text",
    [
        "",  # no content: nothing is counted
        'x"},"finish_reason":"stop","delta":{"content":"y',  # ends the string early
        'x"}}],"usage":{"completion_tokens":9},"a":[{"delta":{"content":"',
        'x\\\\"},"finish_reason":"stop"},{"delta":{"content":"y',  # an escaped backslash, then a bare quote
        "x\\",  # escapes the quote that should end it
        "x\\\\\\",
        "x\\q",  # no escape of JSON
        "x\\u12",
        "x\ny",
        "x\ry",
        "x\n\ndata: y",
        "x\ty",
        "x\x00",
    ],
)
def test_an_event_of_another_structure_is_not_known(text: str) -> None:
    """A quote that ends the string early, half an escape, a line end: all that must be parsed."""
    assert not finds(template(plain("A")), plain(text))


def test_what_is_around_the_text_must_be_the_same() -> None:
    """Another finish reason, index or member, or one less."""
    known = template(plain("A"))
    for other in (
        plain("A").replace(b"null", b'"stop"'),
        plain("A").replace(b'"index":0', b'"index":1'),
        plain("A", ',"usage":{"completion_tokens":1}'),
        plain("A").replace(b'"content"', b'"refusal"'),
        plain("A")[:-1],
        plain("A")[:-2] + b"\r\n\r\n",
    ):
        assert not finds(known, other)


def test_several_events_in_one_read_are_found_one_by_one() -> None:
    """A match ends with its event's blank line, never in a later event."""
    known = template(plain("A"))
    read = plain("B") + plain("C") + plain("").replace(b"null", b'"stop"')
    first = known.find(read, 0)
    assert first is not None and first.end() == len(plain("B"))
    second = known.find(read, first.end())
    assert second is not None and second.end() == len(plain("B") + plain("C"))
    assert known.find(read, second.end()) is None


@pytest.mark.parametrize(
    ("delta", "other"),
    [
        ('{"content":"A"}', '{"content":"B"}'),
        ('{"reasoning_content":"A","content":null}', '{"reasoning_content":"B","content":null}'),
        ('{"role":"assistant","reasoning":"A"}', '{"role":"assistant","reasoning":"B"}'),
        (
            '{"tool_calls":[{"index":0,"function":{"arguments":"A"}}]}',
            '{"tool_calls":[{"index":0,"function":{"arguments":"{\\"x\\":"}}]}',
        ),
        ('{"content":"content"}', '{"content":"role"}'),
        ('{"x":"\\"content\\":\\"A\\"","content":"A"}', '{"x":"\\"content\\":\\"A\\"","content":"B"}'),
    ],
)
def test_text_is_learned_wherever_it_stands(delta: str, other: str) -> None:
    """Content, reasoning, arguments of a tool call; not a text that looks like a member."""
    make = '{{"choices":[{{"delta":{}}}]}}'.format
    assert finds(template(event(make(delta))), event(make(other)))


@pytest.mark.parametrize(
    "payload",
    [
        '{"choices":[{"delta":{"content":"A","reasoning":"B"}}]}',  # two texts
        '{"choices":[{"delta":{"content":"A","content":"B"}}]}',  # the same key twice
        '{"choices":[{"delta":{"content":"A"}},{"delta":{"content":"B"}}]}',
        '{"choices":[{"delta":{"content":["A"]}}]}',
        '{"choices":[{"delta":{"refusal":"A"}}]}',
        '{"choices":[]}',
        '{"choices":null}',
        "[]",
        "{",
    ],
)
def test_nothing_is_learned_from_what_is_not_one_text(payload: str) -> None:
    """It is parsed each time instead."""
    assert shape(event(payload)) is None


def test_nothing_is_learned_from_an_event_that_ends_in_a_lone_cr() -> None:
    """Its end cannot be told from half a CRLF."""
    assert shape(b'data: {"choices":[{"delta":{"content":"A"}}]}\r\r') is None
    assert shape(b'data: {"choices":[{"delta":{"content":"A"}}]}\r\n\r\n') is not None


def test_the_obfuscation_may_vary() -> None:
    """OpenAI pads each event with a random string."""
    known = template(plain("A", ',"obfuscation":"xY1"'))
    assert finds(known, plain("B", ',"obfuscation":""'))
    assert not finds(known, plain("B", ',"obfuscation":"","usage":{}'))
    assert not finds(known, plain("B", ',"obfuscation":null'))


def test_the_counts_of_a_running_usage_may_vary() -> None:
    """And are found, with the member and its comma, to be cut out."""
    known = template(plain("A", ', "usage": {"prompt_tokens":9,"completion_tokens":1,"cost":0.5}'), "usage")
    raw = plain("B", ', "usage": {"prompt_tokens":9,"completion_tokens":123,"cost":12.25}')
    found = known.find(raw, 0)
    assert found is not None
    assert json.loads(found["usage"]) == {"prompt_tokens": 9, "completion_tokens": 123, "cost": 12.25}
    start, end = found.span("member")
    assert raw[:start] + raw[end:] == plain("B")


@pytest.mark.parametrize(
    "usage",
    [
        '{"p":0,"q":0,"r":0.5,"s":"1"}',  # a count that becomes 0 may make it a placeholder
        '{"p":9,"q":7,"r":0.5,"s":"1"}',
        '{"p":-9,"q":0,"r":0.5,"s":"1"}',
        '{"p":9.5,"q":0,"r":0.5,"s":"1"}',
        '{"p":09,"q":0,"r":0.5,"s":"1"}',
        '{"p":9999999999999999,"q":0,"r":0.5,"s":"1"}',
        '{"p":9,"q":0,"r":1,"s":"1"}',
        '{"p":9,"q":0,"r":0.5,"s":"2"}',
        '{"p":9,"q":0,"r":0.5,"s":"1","t":1}',
        '{"p":9,"q":0,"r":00.5,"s":"1"}',
    ],
)
def test_a_usage_of_another_kind_is_not_known(usage: str) -> None:
    """Zero, negative, too large, fractions: what may be no usage is read by the one who judges that."""
    known = template(plain("A", ',"usage":{"p":8,"q":0,"r":0.25,"s":"1"}'), "usage")
    assert finds(known, plain("A", ',"usage":{"p":9,"q":0,"r":0.5,"s":"1"}'))
    assert not finds(known, plain("A", f',"usage":{usage}'))


def test_a_count_that_is_printed_as_a_fraction_may_not_vary() -> None:
    """16.0 is a count, 16.5 is none."""
    known = template(plain("A", ',"usage":{"p":16.0}'), "usage")
    assert not finds(known, plain("A", ',"usage":{"p":16.5}'))


def test_what_varies_in_front_of_the_text_is_not_learned() -> None:
    """Perplexity counts there; an obfuscation there is taken as it stands."""
    front = '{"usage":{"completion_tokens":1},"choices":[{"delta":{"content":"A"}}]}'
    assert shape(event(front), "usage") is None
    known = template(event('{"obfuscation":"x","choices":[{"delta":{"content":"A"}}]}'))
    assert finds(known, event('{"obfuscation":"x","choices":[{"delta":{"content":"B"}}]}'))
    assert not finds(known, event('{"obfuscation":"y","choices":[{"delta":{"content":"B"}}]}'))
