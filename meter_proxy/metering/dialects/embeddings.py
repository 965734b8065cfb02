"""embeddings: nothing is generated, so a usage without an output count says 0."""

from meter_proxy.metering.dialects.wire import Choice


def has_content(choice: Choice) -> bool:
    """Never: an embedding is not generated text."""
    return False
