"""The hot path's two questions: whose secret is this, and where does this model go.

Built once from a Config; nothing here changes afterwards, so a reload builds new ones.
"""

import hashlib
from dataclasses import dataclass

from meter_proxy.config.coverage import in_order, is_pattern, matcher
from meter_proxy.config.schema import Config, Key, Model, Price

MAX_REMEMBERED = 10_000  # model names that a pattern matched: callers choose them


class KeyRing:
    """Secret -> key."""

    def __init__(self, config: Config) -> None:
        # A lookup by the whole SHA-256 takes no longer for a nearly right secret: its digest is just another one.
        self._by_digest = {digest: key for key in config.keys for digest in key.secret_sha256}
        self._expires_at = {key.id: key.expires_at.timestamp() for key in config.keys if key.expires_at is not None}

    def find(self, secret: bytes, now: float) -> Key | None:
        """The key with this secret; None when there is none, or it is disabled, or expired at `now` (epoch)."""
        key = self._by_digest.get(hashlib.sha256(secret).digest())
        if key is None or key.disabled:
            return None
        expires_at = self._expires_at.get(key.id)
        return key if expires_at is None or now < expires_at else None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a model goes, and what it costs."""

    asked: str
    entry: str  # the entry of `models:`; a pattern when it is not `asked` itself
    upstreams: tuple[str, ...]  # in the order in which to try them
    upstream_model: str  # the name to send
    price: Price | None
    max_output_tokens: int | None

    @property
    def is_configured(self) -> bool:
        """Whether the name itself stands in the configuration, and so may be a metrics label."""
        return self.entry == self.asked


class ModelTable:
    """Model name -> upstream, per key. Names are compared with case."""

    def __init__(self, config: Config) -> None:
        self._exact = {
            name: _resolved(name, name, model) for name, model in config.models.items() if not is_pattern(name)
        }
        self._matched: dict[str, ResolvedModel] = {}  # by patterns, so far
        patterns = in_order(config.models)
        self._patterns = [(matcher([name]), name, config.models[name]) for name in patterns]
        # The upstreams that may know more names than are configured here, each once.
        self.passthrough_upstreams = tuple(dict.fromkeys(config.models[name].upstreams[0] for name in patterns))
        self._allowed = {key.id: matcher(key.models) for key in config.keys if key.models is not None}

    def resolve(self, model: str, key: Key | None) -> ResolvedModel | None:
        """Where `model` goes for this key; None when it is unknown, or not the key's to use.

        The same object each time, as a rule: callers may keep what they found out about it.
        """
        if not self._may_use(key, model):
            return None
        found = self._exact.get(model) or self._matched.get(model)
        return found if found is not None else self._match(model)

    def _match(self, model: str) -> ResolvedModel | None:
        for pattern, entry, found in self._patterns:
            if pattern.match(model):
                if len(self._matched) >= MAX_REMEMBERED:
                    self._matched.clear()
                resolved = self._matched[model] = _resolved(model, entry, found)
                return resolved
        return None

    def _may_use(self, key: Key | None, model: str) -> bool:
        allowed = self._allowed.get(key.id) if key is not None else None
        return allowed is None or allowed.match(model) is not None

    def list(self, key: Key | None) -> list[str]:
        """The names that this key may ask for, for `GET /models`; patterns are no names."""
        return [name for name in self._exact if self._may_use(key, name)]


def _resolved(asked: str, entry: str, model: Model) -> ResolvedModel:
    return ResolvedModel(
        asked=asked,
        entry=entry,
        upstreams=model.upstreams,
        upstream_model=model.name or asked,
        price=model.price,
        max_output_tokens=model.max_output_tokens,
    )
