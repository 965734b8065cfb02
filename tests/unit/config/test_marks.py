"""YAML -> plain data with positions; bounded, and nothing constructed."""

import pytest

from meter_proxy.config import marks


def test_every_value_and_key_knows_its_place() -> None:
    """Lines and columns count from 1, columns in characters."""
    document = marks.read("é: [x, {y: 1}]\nb:\n  c: 2\n")
    assert document.data == {"é": ["x", {"y": "1"}], "b": {"c": "2"}}
    assert document.mark(("é", 1, "y")) == (1, 12)
    assert document.mark(("é", 1, "y"), key=True) == (1, 9)
    assert document.mark(("b", "c")) == (3, 6)
    assert document.mark(("b", "missing", 3)) == (3, 3)  # the mapping in which it is missing


def test_scalars_stay_as_written() -> None:
    """YAML's guesses do not apply: `off` is a word, 1:30 no number, 2027-01-01 no date."""
    text = "{a: off, b: 1:30, c: 2027-01-01, d: 0x1F, e: 1_000, f: true, g: 'true', h: ~, i: , j: yes, "
    text += "k: !!str true, l: .nan}"
    assert marks.read(text).data == {
        "a": "off", "b": "1:30", "c": "2027-01-01", "d": "0x1F", "e": "1_000",
        "f": True, "g": "true", "h": None, "i": None, "j": "yes", "k": "true", "l": ".nan",
    }  # fmt: skip


def test_anchors_and_merge_keys_just_work() -> None:
    """The own member wins, then the first of a list; nested merges reach through; null takes one away."""
    text = "x: &x {a: 1, b: 1}\ny: &y {<<: *x, c: 1}\nz: {a: 2, <<: [{c: 3}, *y], d: *x}\nw: {<<: *x, a: }\n"
    document = marks.read(text)
    assert document.data["z"] == {"a": "2", "b": "1", "c": "3", "d": {"a": "1", "b": "1"}}
    assert document.data["w"] == {"a": None, "b": "1"}
    assert document.mark(("z", "b")) == (1, 17)  # where it was written
    assert document.faults == []


def test_duplicate_keys_are_told_with_both_places() -> None:
    """The first one counts for the rest of the checks; each further one is a fault."""
    document = marks.read("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert document.data == {"a": "1", "b": {"c": "1"}}
    assert document.faults == [
        ((2, 11), ("b", "c"), "duplicate key 'c'; it stands first at line 2, column 5"),
        ((3, 1), ("a",), "duplicate key 'a'; it stands first at line 1, column 1"),
    ]


@pytest.mark.parametrize(
    ("text", "mark", "loc", "message"),
    [
        ("a: !foo b", (1, 4), ("a",), "tag !foo is not allowed; write a plain value"),
        (
            "a: !!python/object/apply:os.system [x]",
            (1, 4),
            ("a",),
            "tag !!python/object/apply:os.system is not allowed",
        ),
        ("a: !!binary aGk=", (1, 4), ("a",), "tag !!binary is not allowed"),
        ("a: !!set {b}", (1, 4), ("a",), "tag !!set is not allowed"),
        ("a: &a [*a]", (1, 4), ("a", 0), "this alias contains itself"),
        ("a: &a {b: {c: *a}}", (1, 4), ("a", "b", "c"), "this alias contains itself"),
        ("a: &a {<<: *a}", (1, 4), ("a",), "`<<` takes another mapping, or a list of mappings"),
        ("a: {<<: 5}", (1, 9), ("a",), "`<<` takes another mapping, or a list of mappings"),
        ("? [a]\n: b", (1, 3), (), "a key must be plain text"),
    ],
)
def test_what_is_no_plain_data_is_a_fault_and_left_out(
    text: str, mark: marks.Mark, loc: tuple[str | int, ...], message: str
) -> None:
    """Unknown tags, aliases that contain themselves, keys that are no text."""
    document = marks.read(text)
    ((found_mark, found_loc, found_message),) = document.faults
    assert (found_mark, found_loc) == (mark, loc)
    assert found_message.startswith(message)
    assert document.broken == {loc}


@pytest.mark.parametrize(
    ("text", "mark", "message"),
    [
        ("", (1, 1), "the file is empty; see `meter-proxy config schema` for what may stand in it"),
        ("# only a comment\n", (1, 1), "the file is empty; see `meter-proxy config schema` for what may stand in it"),
        ("a: 1\nb: [1\nc: 2", (3, 2), "not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("a: b: c", (1, 5), "not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", (2, 1), "not YAML: expected a single document in the stream, but found another document"),
        ("a: *b", (1, 4), "not YAML: found undefined alias 'b'"),
        ("a: 1\nb: \x07", (2, 4), "not YAML: character #x0007 is not allowed"),
        (
            "a: {b: ${C}}",
            (1, 9),
            "not YAML: while parsing a flow mapping, expected ',' or '}', but got '{'; "
            "inside { } or [ ] put ${VAR} in quotes",
        ),
        ("[" * 40 + "]" * 40, (1, 33), "not a configuration: nested too deeply"),
        ("[" * 50_000, (1, 1), "not a configuration: nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_one_fault(text: str, mark: marks.Mark, message: str) -> None:
    """One line with its place, never a traceback."""
    with pytest.raises(marks.Unreadable) as caught:
        marks.read(text)
    assert (caught.value.mark, caught.value.message) == (mark, message)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("first", "form"), [("[x, x]", "[{}]"), ("{k: v}", "{{<<: [{}]}}")])
def test_aliases_that_multiply_are_bounded(first: str, form: str) -> None:
    """Thirty lines that would expand to 10^30 values end after a hundred thousand."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 10)) for i in range(1, 30)]
    with pytest.raises(marks.Unreadable) as caught:
        marks.read("\n".join(lines))
    assert caught.value.message == "aliases expand to more than 100,000 values"
