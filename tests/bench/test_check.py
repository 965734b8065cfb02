"""The gate goes red when a figure rises by more than 15%, and is not fooled by figures that are missing."""

from tests.bench.check import comparable, compare
from tests.bench.syscalls import in_groups

STRACE_SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.004000           4      1010           write
 30.00    0.002000           2      1020        10 read
 10.00    0.000600           1       900           epoll_pwait
  0.00    0.000000           0        70           getpid
------ ----------- ----------- --------- --------- ----------------
100.00    0.006600           2      3000        10 total
"""


def faults(recorded: dict[str, float], measured: dict[str, float]) -> list[str]:
    """The names of the figures that the gate complains about."""
    return [each.name for each in compare(recorded, measured) if each.is_fault]


def test_a_rise_of_16_percent_is_a_fault() -> None:
    assert faults({"cpu per chunk": 100.0}, {"cpu per chunk": 116.0}) == ["cpu per chunk"]


def test_a_rise_of_14_percent_and_any_fall_are_none() -> None:
    assert faults({"a": 100.0, "b": 100.0}, {"a": 114.0, "b": 10.0}) == []


def test_each_figure_is_held_to_its_own_record() -> None:
    """A fall of one does not pay for a rise of another."""
    assert faults({"a": 100.0, "b": 10.0}, {"a": 50.0, "b": 12.0}) == ["b"]


def test_a_recorded_figure_that_is_not_measured_any_more_is_a_fault() -> None:
    assert faults({"a": 1.0, "b": 1.0}, {"a": 1.0}) == ["b"]


def test_a_new_figure_is_no_fault_and_says_that_it_is_not_recorded() -> None:
    (new,) = compare({}, {"a": 1.0})
    assert not new.is_fault
    assert "not recorded" in str(new)


def test_bytecodes_of_another_python_are_not_compared() -> None:
    recorded = {"bytecodes per chunk": 1.0, "syscalls per chunk": 1.0, "instructions per chunk": 1.0}
    assert list(comparable(recorded, python_is_another=True, has_instructions=True)) == list(recorded)[1:]
    assert list(comparable(recorded, python_is_another=False, has_instructions=False)) == list(recorded)[:2]


def test_the_summary_of_strace_is_read_with_and_without_errors_in_a_row() -> None:
    assert in_groups(STRACE_SUMMARY) == {
        "read": 1020,
        "write": 1010,
        "epoll wait": 900,
        "epoll ctl": 0,
        "other": 70,
        "all": 3000,
    }
