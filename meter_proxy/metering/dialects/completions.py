"""completions (legacy): which events and choices hold generated text."""

from meter_proxy.metering.dialects.wire import Choice

SPOKEN_AT: tuple[tuple[str | int, ...], ...] = (("text",),)


def has_content(choice: Choice) -> bool:
    """True if the choice holds generated text; an empty string is none."""
    return bool(choice.text)
