"""The examples at the end of each `--help`: they teach more than the options do, and a test parses every one."""

from collections.abc import Sequence

HEADING = "Examples:"
_AS_WRITTEN = "\b"  # on a line of its own: the paragraph below it is not wrapped


def epilog(examples: Sequence[str]) -> str:
    """Make the end of a help text. An example is a line for the shell, which fits 78 columns."""
    return "\n".join([_AS_WRITTEN, HEADING, *(f"  {example}" for example in examples)])
