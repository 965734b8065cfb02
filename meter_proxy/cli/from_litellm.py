"""LiteLLM's proxy configuration (`config.yaml`) in our words.

| theirs | ours |
| --- | --- |
| `model_list[].model_name` | a name in `models` |
| `litellm_params.model`, `api_base`, `api_key` | `name`, and an upstream |
| `input_cost_per_token`, ... (of `model_info` too) | `price` |
| `litellm_params.rpm`, `tpm` | rules on requests and tokens per minute, for that model, of the master key |
| `general_settings.master_key` | the key `master` |
| `general_settings.max_parallel_requests`, `litellm_settings.max_budget` with `budget_duration` | rules of it |
| `litellm_settings.request_timeout` | `timeouts.total` of the upstreams |
| `router_settings.model_group_alias`, `redis_host`, `redis_port`, `redis_password` | aliases in `models`; `redis.url` |
| `os.environ/NAME` | `${NAME}` |

Everything else is named in the notes. Providers whose API is not OpenAI's are left out: nothing is translated here.
Virtual keys, teams and users are in LiteLLM's database, not in this file.
Source: docs.litellm.ai/docs/proxy/configs and .../config_settings.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from meter_proxy.cli.draft import Draft, number, plain, price
from meter_proxy.config.secrets import digest
from meter_proxy.errors import ConfigError

# Provider prefix of `litellm_params.model` -> its OpenAI-compatible base URL; "" where only api_base can say it.
PROVIDERS = {
    "openai": "https://api.openai.com/v1",
    "text-completion-openai": "https://api.openai.com/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "fireworks_ai": "https://api.fireworks.ai/inference/v1",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "together_ai": "https://api.together.xyz/v1",
    "xai": "https://api.x.ai/v1",
    "ollama": "http://localhost:11434",
    "ollama_chat": "http://localhost:11434",
    "custom_openai": "",
    "hosted_vllm": "",
    "litellm_proxy": "",
    "llamafile": "",
    "lm_studio": "",
    "openai_like": "",
    "vllm": "",
}
OLLAMA = ("ollama", "ollama_chat")  # their api_base is the server's root; they want no key
KEY_VARIABLES = {
    "together_ai": "TOGETHERAI_API_KEY",
    "text-completion-openai": "OPENAI_API_KEY",
}  # else PROVIDER_API_KEY
PERIODS = {"1m": "minute", "1h": "hour", "1d": "day", "24h": "day", "7d": "week", "30d": "month", "1mo": "month"}
COSTS = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
SECTIONS = ("model_list", "litellm_settings", "general_settings", "router_settings", "environment_variables")


def translate(theirs: Mapping[str, Any]) -> Draft:
    """Write a draft from a parsed `config.yaml`. Raises `ConfigError` when it is none."""
    models = theirs.get("model_list")
    if not isinstance(models, list):
        raise ConfigError(["meter-proxy: no LiteLLM configuration: it has no list `model_list`"])
    draft = Draft()
    limits: list[dict[str, Any]] = []
    for place, entry in enumerate(models):
        _deployment(draft, limits, entry, f"model_list[{place}]")
    general, litellm, router = (
        _Section(draft, theirs, f"{name}_settings") for name in ("general", "litellm", "router")
    )
    unpriced = [name for name, model in draft.models.items() if "price" not in model]
    if unpriced:
        draft.note(f"no price in the file (LiteLLM has a built-in list); set `price` of: {', '.join(unpriced)}")
    _router(draft, router)
    _keys(draft, general, litellm, limits)
    if (timeout_s := number(litellm.take("request_timeout"))) is not None and timeout_s > 0:
        for upstream in draft.upstreams.values():
            upstream["timeouts"] = {"total": f"{plain(timeout_s)}s"}
    if general.take("database_url"):
        draft.note(
            "general_settings.database_url: virtual keys, teams, users and their budgets are in LiteLLM's database; "
            "make keys with `meter-proxy keys create`"
        )
    variables = theirs.get("environment_variables")
    if isinstance(variables, dict) and variables:
        names = ", ".join(map(str, variables))
        draft.note(f"environment_variables: set them in the environment of serve: {names}")
    for section in (general, litellm, router):
        section.note_the_rest()
    for name in theirs:
        if name not in SECTIONS:
            draft.note(f"{name}: has no equivalent")
    return draft


class _Section:
    """One of the sections of settings: what is taken is understood, what is left is noted."""

    def __init__(self, draft: Draft, theirs: Mapping[str, Any], name: str) -> None:
        section = theirs.get(name)
        self._left = dict(section) if isinstance(section, dict) else {}
        self._draft, self._name = draft, name

    def take(self, member: str) -> Any:
        return self._left.pop(member, None)

    def note_the_rest(self) -> None:
        for member in self._left:
            self._draft.note(f"{self._name}.{member}: has no equivalent")


def _deployment(draft: Draft, limits: list[dict[str, Any]], entry: object, where: str) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("litellm_params"), dict):
        draft.note(f"{where}: left out: it has no litellm_params")
        return
    params = dict(entry["litellm_params"])
    info = entry["model_info"] if isinstance(entry.get("model_info"), dict) else {}
    model = str(params.pop("model", ""))
    name = str(entry.get("model_name") or model)
    where = f"{where} ({name})"
    found = _address(draft, params, model, where)
    if found is None:
        return
    upstream, sent = found
    if "*" in name and sent != "*" and sent != name:
        draft.note(f"{where}: left out: {model} would take a prefix off the names it passes through")
        return
    costs = [number(params.pop(cost, None) or info.get(cost)) for cost in COSTS]
    members = price(*costs)
    most = number(info.get("max_output_tokens"))
    if most is not None and most >= 1:
        members["max_output_tokens"] = int(most)
    draft.model(name, upstream, name if "*" in name else sent, **members)
    for theirs, unit in (("rpm", "requests"), ("tpm", "tokens")):
        amount = number(params.pop(theirs, None))
        if amount is not None and amount >= 1:
            _add_limit(limits, name, unit, int(amount))
    for member in params:
        draft.note(f"litellm_params.{member} of {name}: has no equivalent")


def _address(draft: Draft, params: dict[str, Any], model: str, where: str) -> tuple[str, str] | None:
    """Which upstream it is, and the model's name there; None, and a note, for what we do not speak."""
    prefix, slash, rest = model.partition("/")
    provider = str(params.pop("custom_llm_provider", None) or (prefix if slash else ""))
    sent = rest if slash and provider == prefix else model
    api_base = params.pop("api_base", None) or params.pop("base_url", None)
    written_key = params.pop("api_key", None)
    if provider and provider not in PROVIDERS:
        draft.note(f"{where}: left out: {provider} does not speak OpenAI's API here, and nothing is translated")
        return None
    base_url = _text(str(api_base)) if api_base else PROVIDERS[provider or "openai"]
    if not base_url:
        draft.note(f"{where}: left out: {provider} without an api_base")
        return None
    if provider in OLLAMA and not base_url.rstrip("/").endswith("/v1"):
        base_url = base_url.rstrip("/") + "/v1"
    if written_key:
        api_key: str | None = _text(str(written_key))
    elif api_base or provider in OLLAMA:
        api_key = None
    else:
        variable = KEY_VARIABLES.get(provider, f"{(provider or 'openai').upper()}_API_KEY")
        api_key = f"${{{variable}}}"
    name = provider if provider and not api_base else re.sub(r"^\w+://|[:/].*$", "", base_url) or "upstream"
    return draft.upstream(name if "$" not in name else provider or "upstream", base_url, api_key), sent


def _add_limit(limits: list[dict[str, Any]], model: str, unit: str, amount: int) -> None:
    """Deployments of one model add up."""
    for rule in limits:
        if rule["models"] == [model] and unit in rule:
            rule[unit] += amount
            return
    limits.append({unit: amount, "per": "minute", "models": [model]})


def _router(draft: Draft, router: _Section) -> None:
    aliases = router.take("model_group_alias")
    for alias, group in aliases.items() if isinstance(aliases, dict) else ():
        target = str(group.get("model") if isinstance(group, dict) else group)
        if target not in draft.models:
            draft.note(f"router_settings.model_group_alias: {alias}: there is no model {target}")
            continue
        draft.models[str(alias)] = {"name": target, **draft.models[target]}
    host, port, password = (router.take(f"redis_{member}") for member in ("host", "port", "password"))
    if host:
        secret = _text(str(password)) if password else ""
        secret = secret if secret.startswith("${") else quote(secret, safe="")
        at = f":{secret}@" if secret else ""
        draft.settings["redis"] = {"url": f"redis://{at}{_text(str(host))}:{_text(str(port or 6379))}"}
        draft.note("router_settings.redis_*: the same Redis; it must have maxmemory-policy noeviction")


def _keys(draft: Draft, general: _Section, litellm: _Section, limits: list[dict[str, Any]]) -> None:
    rules = [dict(rule) for rule in limits]
    parallel = number(general.take("global_max_parallel_requests") or general.take("max_parallel_requests"))
    if parallel is not None and parallel >= 1:
        rules.append({"concurrent": int(parallel)})
    budget, period = number(litellm.take("max_budget")), litellm.take("budget_duration")
    if budget is not None and budget > 0:
        rules += _budget(draft, budget, period)
    master = general.take("master_key")
    if not master:
        draft.note("no general_settings.master_key: every caller is anonymous until there are keys")
        for rule in rules:
            draft.note(f"no key to limit: {_shown(rule)}")
        return
    written = _text(str(master))
    variable = re.fullmatch(r"\$\{(\w+)\}", written)
    secret = {"env": variable[1]} if variable else digest(written.encode())
    draft.keys.append({"id": draft.new_id("master"), "secret": secret, "quotas": rules or "unlimited"})
    draft.note("the master key is a caller's key here; for /v1/organization and /api set another as admin_token")


def _budget(draft: Draft, budget: Decimal, period: object) -> list[dict[str, Any]]:
    per = "total" if period is None else PERIODS.get(str(period))
    if per is None:
        draft.note(f"litellm_settings.max_budget: budget_duration {period} is no window here: {', '.join(PERIODS)} are")
        return []
    if not draft.has_price():
        draft.note(f"litellm_settings.max_budget: {budget} USD per {per} needs models with a price: add them first")
        return []
    return [{"name": "budget", "cost_usd": plain(budget), "per": per}]


def _shown(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in rule.items())


def _text(value: str) -> str:
    """Their reference to the environment in ours."""
    return re.sub(r"^os\.environ/(\w+)$", r"${\1}", value.strip())
