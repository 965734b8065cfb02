"""The operation table: which paths exist, and what they ask of the model.

Every path that can cost tokens stands here with its operation, and so with its meter: no route
without a meter. Upstream paths come from this table, never from the client's URL.
"""

from typing import NamedTuple

from meter_proxy.usage import Operation


class Route(NamedTuple):
    """A metered operation: `path` below each of `path_prefixes`, and below the upstream's `base_url`."""

    path: str
    operation: Operation


METERED = (
    Route("/chat/completions", Operation.CHAT),
    Route("/completions", Operation.TEXT_COMPLETION),
    Route("/embeddings", Operation.EMBEDDINGS),
)
MODELS = "/models"  # costs nothing, answered from the configuration
USAGE = "/usage"  # the caller's own
ORGANIZATION_USAGE, ORGANIZATION_COSTS = "/organization/usage/completions", "/organization/costs"  # the operator's
BILLING_SUBSCRIPTION, BILLING_USAGE = "/dashboard/billing/subscription", "/dashboard/billing/usage"  # the caller's own
