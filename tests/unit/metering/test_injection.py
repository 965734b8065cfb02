"""rewrite_body: our members in the client's own bytes, and what must be hidden for it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden, RunningUsage, rewrite_body
from meter_proxy.metering.request import parse_body
from meter_proxy.usage import Operation

BOTH = Hidden(usage_event=True, running_usage=True)


def rewritten(
    body: bytes,
    upstream_model: str | None = None,
    include_usage: bool = True,
    running: RunningUsage = RunningUsage.OFF,
) -> tuple[bytes, Hidden]:
    asked = parse_body(body, Operation.CHAT)
    return rewrite_body(body, asked, upstream_model=upstream_model, include_usage=include_usage, running=running)


@pytest.mark.parametrize(
    ("body", "sent", "hidden"),
    [
        (
            b'{"model":"m","stream":true}',
            b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
            Hidden(usage_event=True),
        ),
        (
            b' { "model" : "m" , "stream" : true } ',
            b' { "model" : "m" , "stream" : true,"stream_options":{"include_usage":true} } ',
            Hidden(usage_event=True),
        ),
        (
            b'{"stream_options":null,"model":"m","stream":true}',
            b'{"stream_options":{"include_usage":true},"model":"m","stream":true}',
            Hidden(usage_event=True),
        ),
        (
            b'{"stream_options":{},"model":"m","stream":true}',
            b'{"stream_options":{"include_usage":true},"model":"m","stream":true}',
            Hidden(usage_event=True),
        ),
        (
            b'{"stream_options": { } ,"model":"m","stream":true}',
            b'{"stream_options": {"include_usage":true } ,"model":"m","stream":true}',
            Hidden(usage_event=True),
        ),
        (
            b'{"stream_options":{"x": [1]},"model":"m","stream":true}',
            b'{"stream_options":{"x": [1],"include_usage":true},"model":"m","stream":true}',
            Hidden(usage_event=True),
        ),
        (
            b'{"stream_options":{"include_usage": false, "x":1},"model":"m","stream":true}',
            b'{"stream_options":{"include_usage": true, "x":1},"model":"m","stream":true}',
            Hidden(usage_event=True),
        ),
        (
            b'{"str\\u0065am_options":{"includ\\u0065_usage":null},"mod\\u0065l":"m","stream":true}',
            b'{"str\\u0065am_options":{"includ\\u0065_usage":true},"mod\\u0065l":"m","stream":true}',
            Hidden(usage_event=True),
        ),
        (
            b'{"stream_options":{"include_usage":true},"model":"m","stream":true}',
            b'{"stream_options":{"include_usage":true},"model":"m","stream":true}',
            NOTHING_HIDDEN,
        ),
        (b'{"model":"m","stream":false}', b'{"model":"m","stream":false}', NOTHING_HIDDEN),
        (
            b'{"model":"m","stream_options":{"include_usage":false}}',
            b'{"model":"m","stream_options":{"include_usage":false}}',
            NOTHING_HIDDEN,
        ),
    ],
)
def test_a_stream_is_asked_for_its_usage(body: bytes, sent: bytes, hidden: Hidden) -> None:
    """Merged with what the client sent, which cannot switch it off; every other byte stays."""
    assert rewritten(body) == (sent, hidden)


@pytest.mark.parametrize(
    ("options", "sent", "hidden"),
    [
        (None, {"include_usage": True, "continuous_usage_stats": True}, BOTH),
        ({}, {"include_usage": True, "continuous_usage_stats": True}, BOTH),
        ({"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}, Hidden(running_usage=True)),
        (
            {"include_usage": True, "continuous_usage_stats": False},
            {"include_usage": True, "continuous_usage_stats": True},
            Hidden(running_usage=True),
        ),
        (
            {"continuous_usage_stats": True},
            {"continuous_usage_stats": True, "include_usage": True},
            Hidden(usage_event=True),
        ),
        (
            {"include_usage": True, "continuous_usage_stats": True},
            {"include_usage": True, "continuous_usage_stats": True},
            NOTHING_HIDDEN,
        ),
    ],
)
def test_running_usage_is_asked_for_inside_the_options(options: Any, sent: Any, hidden: Hidden) -> None:
    """What the client asked for itself is never hidden."""
    body = json.dumps({"model": "m", "stream": True, "stream_options": options}).encode()
    out, out_hidden = rewritten(body, running=RunningUsage.VLLM)
    assert json.loads(out) == {"model": "m", "stream": True, "stream_options": sent}
    assert out_hidden == hidden


@pytest.mark.parametrize("timings", [None, False, "absent"])
def test_running_timings_are_asked_for_at_the_top(timings: Any) -> None:
    """Nothing is hidden for it: clients ignore `timings`."""
    own = {} if timings == "absent" else {"timings_per_token": timings}
    body = json.dumps({"model": "m", "stream": True, "stream_options": {"include_usage": True}, **own}).encode()
    out, hidden = rewritten(body, running=RunningUsage.LLAMACPP)
    assert json.loads(out) == {**json.loads(body), "timings_per_token": True}
    assert hidden == NOTHING_HIDDEN


def test_an_upstream_that_refuses_the_field_is_not_asked() -> None:
    """Then the client's bytes go as they came."""
    body = b'{"model":"m","stream":true,"stream_options":{"x":1}}'
    assert rewritten(body, include_usage=False) == (body, NOTHING_HIDDEN)
    assert rewritten(body, include_usage=False)[0] is body


@pytest.mark.parametrize("name", ["qwen", 'a"b\\c', "春天", "m"])
def test_the_model_is_renamed_in_place(name: str) -> None:
    """Only its value changes, also where another member looks like it."""
    body = b'{"x":{"model":"m"},"model" :  "m","y":"model"}'
    out, _ = rewritten(body, upstream_model=name)
    assert out == b'{"x":{"model":"m"},"model" :  %s,"y":"model"}' % json.dumps(name, ensure_ascii=False).encode()


members = st.dictionaries(
    st.text(max_size=4).filter(lambda name: name not in ("model", "stream", "stream_options", "n")),
    st.none() | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
    max_size=3,
)
options = st.none() | st.fixed_dictionaries(
    {}, optional={"include_usage": st.booleans(), "continuous_usage_stats": st.booleans(), "other": st.text(max_size=3)}
)


@given(
    members,
    members,
    options,
    st.sampled_from(list(RunningUsage)),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_the_rest_of_the_body_stays_what_it_was(
    before: dict[str, Any],
    after: dict[str, Any],
    own: dict[str, Any] | None,
    running: RunningUsage,
    include_usage: bool,
    indent: int | None,
    ascii_only: bool,
) -> None:
    """Whatever stands around it and however it is printed: the edited body is what a decoder would have made."""
    wire = {**before, "stream_options": own, "model": "a", "stream": True, **after}
    body = json.dumps(wire, indent=indent, ensure_ascii=ascii_only).encode()
    out, hidden = rewritten(body, "b", include_usage, running)
    expected = {**wire, "model": "b"}
    added: dict[str, Any] = {}
    if include_usage:
        added["include_usage"] = True
    if running is RunningUsage.VLLM:
        added["continuous_usage_stats"] = True
    if added:
        expected["stream_options"] = {**(own or {}), **added}
    if running is RunningUsage.LLAMACPP:
        expected["timings_per_token"] = True
    assert json.loads(out) == expected
    assert hidden.usage_event == (include_usage and not (own or {}).get("include_usage"))
    assert hidden.running_usage == (running is RunningUsage.VLLM and not (own or {}).get("continuous_usage_stats"))


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m"}', b'{"model":"m","max_tokens":7}'),
        (b'{"model":"m","max_tokens":null}', b'{"model":"m","max_tokens":7}'),
    ],
)
def test_a_quotas_bound_is_sent_where_the_client_set_none(body: bytes, sent: bytes) -> None:
    """The upstream must not generate more than was reserved."""
    asked = parse_body(body, Operation.CHAT)
    rewritten, _ = rewrite_body(
        body, asked, upstream_model=None, include_usage=False, running=RunningUsage.OFF, max_tokens=7
    )
    assert rewritten == sent
