"""Events known by their bytes: a template finds what parsing would find, and cannot be fooled."""

import json
import re

import pytest

from meter_proxy.metering.dialects import DIALECTS
from meter_proxy.metering.template import Kind, Kinds, Shape, Template, shape_of
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


def kind(raw: bytes, usage_name: str | None = None) -> Kind:
    found = shape(raw, usage_name)
    assert found is not None
    return Kind(found)


def in_stream(known: Kind | Kinds, raw: bytes) -> Template | None:
    """The template for the stream of this event, which it matches itself."""
    found = known.find(raw)
    if found is None:
        return None
    assert found[1].end() == len(raw)
    return found[0]


def template(raw: bytes, usage_name: str | None = None) -> Template:
    found = in_stream(kind(raw, usage_name), raw)
    assert found is not None
    return found


def find(known: Template, data: bytes, start: int) -> re.Match[bytes] | None:
    """The event that starts there, as StreamMeter looks for it."""
    return known.match(data, start + known.prefix_bytes) if data.startswith(known.prefix, start) else None


def finds(known: Template, raw: bytes) -> bool:
    """The event at the start of `raw` is known, and it is the whole of it."""
    found = find(known, raw, 0)
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
    first = find(known, read, 0)
    assert first is not None and first.end() == len(plain("B"))
    second = find(known, read, first.end())
    assert second is not None and second.end() == len(plain("B") + plain("C"))
    assert find(known, read, second.end()) is None


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
    found = find(known, raw, 0)
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


def of_stream(stream_id: str, created: str = "1700000000", content: str = "A", behind: bool = False) -> bytes:
    """An event of a stream with its id and time in front of the text, as most print it, or behind it (llama.cpp)."""
    frame = f'"id":"{stream_id}","created":{created},"model":"m"'
    choices = '"choices":[{"index":0,"delta":{"content":"' + content + '"},"finish_reason":null}]'
    return event("{" + (f"{choices},{frame}" if behind else f"{frame},{choices}") + "}")


@pytest.mark.parametrize("behind", [False, True])
def test_a_kind_is_known_in_a_stream_of_another_id_and_time(behind: bool) -> None:
    """And its template tells the other events of that stream, by their bytes in front of the text."""
    first = kind(of_stream("chatcmpl-1", behind=behind))
    other = in_stream(first, of_stream('x \\" y', "1799999999", behind=behind))
    assert other is not None
    assert other.model == "m"
    assert finds(other, of_stream('x \\" y', "1799999999", content="B", behind=behind))
    assert finds(other, of_stream("chatcmpl-1", behind=behind)) is behind


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("stream_id", "created"),
    [
        ('x","id":"y', "1700000000"),
        ('x","choices":[{"index":0,"delta":{"content":"B"},"finish_reason":"stop"}],"y":"', "1700000000"),
        ("x\\", "1700000000"),
        ("x\n", "1700000000"),
        ("x\\q", "1700000000"),
        ("x", "1700000000.5"),
        ("x", "0"),
        ("x", "-1"),
        ("x", "01"),
        ("x", "null"),
        ("x", '1,"error":"x"'),
        ("x", "1700000000 "),
    ],
)
def test_an_id_or_a_time_of_another_structure_is_not_known(stream_id: str, created: str, behind: bool) -> None:
    """What ends the string or the number early, or is none, must be parsed."""
    assert kind(of_stream("chatcmpl-1", behind=behind)).find(of_stream(stream_id, created, behind=behind)) is None


def test_a_kind_knows_its_model_and_no_other() -> None:
    """The answer's model is read from no event that is known: so it must be the same."""
    raw = of_stream("chatcmpl-1")
    assert kind(raw).find(raw.replace(b'"model":"m"', b'"model":"n"')) is None


def learn(kinds: Kinds, raw: bytes) -> Template | None:
    return kinds.learn(raw, len(raw) - 2, None, was_worth_it=False)


def test_a_kind_is_learned_over_several_streams() -> None:
    """Short streams teach too: the second one that was looked at makes the kind, for all that follow."""
    kinds = Kinds(SPOKEN_AT)
    assert [learn(kinds, of_stream(f"chatcmpl-{number}")) is not None for number in range(3)] == [False, False, True]
    assert kinds.find(of_stream("chatcmpl-9", content="B")) is not None
    assert kinds.find(of_stream("chatcmpl-9", content="")) is None


def test_what_is_remembered_is_bounded_and_the_latest_stays() -> None:
    """Four kinds, and those that were used last."""
    kinds = Kinds(SPOKEN_AT)
    raws = [plain("A", f',"x{number}":1') for number in range(6)]
    for raw in raws:
        while learn(kinds, raw) is None:
            pass
        kinds.find(raws[0])
    assert [kinds.find(raw) is not None for raw in raws] == [True, False, False, True, True, True]
