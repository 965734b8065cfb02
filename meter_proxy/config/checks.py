"""What no section can know by itself: names that must exist, rules that contradict each other.

Works on a Config whose sections are good by themselves; the places it reports are the YAML's.
"""

from collections.abc import Iterable, Iterator, Set

from meter_proxy.config import urls
from meter_proxy.config.coverage import covered, is_pattern, may_meet
from meter_proxy.config.faults import Finding, Loc, did_you_mean
from meter_proxy.config.schema import Config, Key, Quota

MOST = 2**53  # Redis' scripts count in floats
CHARGE_BYTES = 60  # of a charge beside its rule's id
SLOT_BYTES_FOR_CHARGES = 1_100
RESERVED_KEY_ID = "unknown"  # the metrics' word for a caller who has not shown a key


def findings(config: Config, *, allow_anonymous: bool) -> Iterator[Finding]:
    """Every fault between sections, in the order of the sections."""
    yield from _listeners(config, allow_anonymous)
    yield from _path_prefixes(config)
    yield from _upstreams_and_models(config)
    yield from _keys(config)
    yield from _rule_ids(config)
    yield from _rules_against_models(config)
    yield from _rules_fit_a_slot(config)


def _listeners(config: Config, allow_anonymous: bool) -> Iterator[Finding]:
    if config.listen == config.admin and config.listen.port:
        yield Finding(("admin",), "must differ from listen")
    if config.admin_token is None and not config.admin.is_loopback:
        message = f"{config.admin} is not on loopback: set admin_token, or listen on 127.0.0.1"
        yield Finding(("admin",), message, because=(("admin_token",),))
    if not config.keys and not config.listen.is_loopback and not allow_anonymous:
        message = f"{config.listen} is not on loopback and there are no keys: add keys, or start with --allow-anonymous"
        yield Finding(("listen",), message, because=(("keys",),))


def _path_prefixes(config: Config) -> Iterator[Finding]:
    for position, reason in urls.clashes(config.path_prefixes).items():
        yield Finding(("path_prefixes", position), reason, because=(("path_prefixes",),))


def _upstreams_and_models(config: Config) -> Iterator[Finding]:
    if not config.upstreams:
        yield Finding(("upstreams",), "is required: add `upstreams: {local: {base_url: http://127.0.0.1:8000/v1}}`")
    if not config.models:
        upstream = next(iter(config.upstreams), "local")
        yield Finding(("models",), f'is required: add `models: {{"*": {{upstream: {upstream}}}}}` to pass any name')
    for name, model in config.models.items():
        for position, upstream in enumerate(model.upstreams):
            loc: Loc = ("models", name, "upstream", position)
            if upstream not in config.upstreams:
                message = f"there is no upstream {upstream!r}{did_you_mean(upstream, config.upstreams)}"
                yield Finding(loc, message, because=(("upstreams", upstream),))
            elif upstream in model.upstreams[:position]:
                yield Finding(loc, f"upstream {upstream!r} is listed twice")


def _keys(config: Config) -> Iterator[Finding]:
    ids: dict[str, Loc] = {}
    secrets: dict[bytes, int] = {}
    accounts = {key.account for key in config.keys} | set(config.accounts)
    for position, key in enumerate(config.keys):
        yield from _key(config, position, key, accounts)
        if key.id in ids:
            yield Finding(("keys", position, "id"), f"{key.id!r} is the id of another key", other=ids[key.id])
        ids.setdefault(key.id, ("keys", position))
        for digest in key.secret_sha256:
            other = secrets.setdefault(digest, position)
            if other != position:
                loc: Loc = ("keys", position, "secret")
                yield Finding(loc, "is the same secret as that of another key", other=("keys", other))
        if len(set(key.secret_sha256)) < len(key.secret_sha256):
            yield Finding(("keys", position, "secret"), "is the same secret twice")


def _key(config: Config, position: int, key: Key, accounts: Set[str | None]) -> Iterator[Finding]:
    loc: Loc = ("keys", position)
    plan = config.plans.get(key.plan) if key.plan else None
    if not key.secret_sha256:
        yield Finding((*loc, "secret"), "is required: `meter-proxy keys create --id ID` makes one")
    if key.id == RESERVED_KEY_ID:
        yield Finding((*loc, "id"), f"{RESERVED_KEY_ID!r} is the metrics' word for callers without a key; take another")
    if key.plan is not None and plan is None:
        message = f"there is no plan {key.plan!r}{did_you_mean(key.plan, config.plans)}"
        yield Finding((*loc, "plan"), message, because=(("plans", key.plan),))
    if key.id in accounts and key.account != key.id:
        yield Finding(
            (*loc, "id"), f"{key.id!r} is the name of an account; take another id, or say `account: {key.id}`"
        )
    if key.account is not None and config.accounts and key.account not in config.accounts:
        message = f"there is no account {key.account!r}{did_you_mean(key.account, config.accounts)}"
        yield Finding((*loc, "account"), message, because=(("accounts", key.account),))
    if key.unlimited and plan is not None and plan.quotas:
        message = f"unlimited contradicts the rules of plan {key.plan!r}; take out one of them"
        yield Finding((*loc, "quotas"), message)
    if not key.unlimited and not config.rules_of(key) and (key.plan is None or plan is not None):
        because: tuple[Loc, ...] = (("plans", key.plan), (*loc, "plan")) if key.plan else ((*loc, "plan"),)
        yield Finding(
            (*loc, "quotas"), "the key has no rule; add a plan or quotas, or say `unlimited`", because=because
        )


def _patterns(config: Config, loc: Loc, patterns: Iterable[str] | None) -> Iterator[Finding]:
    """Patterns of the entry at `loc` that match nothing which anybody could ask for."""
    for position, pattern in enumerate(patterns or ()):
        meets = is_pattern(pattern) and any(may_meet(pattern, entry) for entry in config.models if is_pattern(entry))
        if not meets and not covered([pattern], config.models):
            message = f"{pattern!r} matches no model{did_you_mean(pattern, config.models)}"
            yield Finding((*loc, "models", position), message, because=(("models",),))


def _rule_ids(config: Config) -> Iterator[Finding]:
    for section, holders in (("plans", config.plans), ("accounts", config.accounts)):
        for name, holder in holders.items():
            yield from _same_ids((section, name, "quotas"), holder.quotas, {})
    for position, key in enumerate(config.keys):
        plan = config.plans.get(key.plan) if key.plan else None
        inherited: dict[str, Loc] = {}
        for index, rule in enumerate(plan.quotas if plan else ()):
            if not key.replaces(rule):
                inherited[rule.rule_id] = ("plans", str(key.plan), "quotas", index)
        yield from _same_ids(("keys", position, "quotas"), key.quotas, inherited)


def _same_ids(loc: Loc, rules: tuple[Quota, ...], taken: dict[str, Loc]) -> Iterator[Finding]:
    for position, rule in enumerate(rules):
        other = taken.setdefault(rule.rule_id, (*loc, position))
        if other == (*loc, position):
            continue
        advice = "give one of them a `name`"
        if other[0] == "plans" and loc[0] == "keys":
            advice = "give both the same `name` to replace the plan's, or this one another"
        yield Finding((*loc, position), f"has the same id {rule.rule_id!r} as another rule; {advice}", other=other)


def _rules_against_models(config: Config) -> Iterator[Finding]:
    usable = [(key, covered(key.models, config.models)) for key in config.keys]
    for name, plan in config.plans.items():
        users = [(key, entries) for key, entries in usable if key.plan == name]
        for position, rule in enumerate(plan.quotas):
            subject = [entries for key, entries in users if not key.replaces(rule)]
            if subject or not users:
                entries = _either(subject, config)
                yield from _rule_against_models(config, ("plans", name, "quotas", position), rule, entries)
    for index, (key, entries) in enumerate(usable):
        for position, rule in enumerate(key.quotas):
            yield from _rule_against_models(config, ("keys", index, "quotas", position), rule, entries)
    for name, account in config.accounts.items():
        members = [entries for key, entries in usable if key.account_id == name]
        for position, rule in enumerate(account.quotas):
            entries = _either(members, config)
            yield from _rule_against_models(config, ("accounts", name, "quotas", position), rule, entries)


def _rules_fit_a_slot(config: Config) -> Iterator[Finding]:
    """What an exchange is charged to is kept by value beside it, in a place of fixed size."""
    for position, key in enumerate(config.keys):
        account = config.accounts.get(key.account_id)
        rules = (*config.rules_of(key), *(account.quotas if account is not None else ()))
        if sum(len(rule.rule_id) + CHARGE_BYTES for rule in rules) > SLOT_BYTES_FOR_CHARGES:
            message = f"the key has {len(rules)} rules, with its plan's and its account's: too many, or too long names"
            yield Finding(("keys", position, "quotas"), message, because=(("keys", position),))


def _either(entries: list[set[str]], config: Config) -> set[str]:
    """What any of the callers may ask for; without callers, what the next one may."""
    return set().union(*entries) if entries else set(config.models)


def _rule_against_models(config: Config, loc: Loc, rule: Quota, usable: set[str]) -> Iterator[Finding]:
    """`usable`: the entries of `models:` that the callers under this rule may ask for."""
    yield from _patterns(config, loc, rule.models)
    entries = sorted(covered(rule.models, config.models) & usable)
    unpriced = [entry for entry in entries if config.models[entry].price is None]
    # A rule over all models may meet some that cost nothing here; one that names models means those.
    if rule.unit == "cost_usd" and unpriced and (rule.models is not None or unpriced == entries):
        names = ", ".join(unpriced)
        message = (
            f"limits the cost of models without a price: {names}; add `price: {{input: ..., output: ...}}` to them"
        )
        yield Finding(loc, message, because=tuple(("models", entry) for entry in unpriced))
    if rule.limit > MOST:
        yield Finding(loc, f"the limit is beyond what can be counted exactly: {MOST:,}, or 9,007,199 USD")
    unbounded = [entry for entry in entries if config.models[entry].max_output_tokens is None]
    if rule.reserve == "hard" and rule.unit in ("tokens", "output_tokens", "cost_usd") and unbounded:
        message = f"reserves hard, but these models have no max_output_tokens: {', '.join(unbounded)}"
        yield Finding(loc, message, because=tuple(("models", entry) for entry in unbounded))
