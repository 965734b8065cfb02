"""one-api's channels, tokens and users in our words; from its SQLite file (`one-api.db`), or from JSON.

JSON is `{"channels": [...], "tokens": [...], "users": [...], "options": [...]}`: rows as in the tables, each list also
as the answer of `/api/channel/` and the like (`{"data": [...]}`), which leaves out the channels' keys.

| theirs | ours |
| --- | --- |
| a channel (type, `base_url`, `key`) | an upstream; disabled ones and those of another API are left out |
| its `models`, `model_mapping`, `priority` | `models`, `name`, the order of upstreams |
| a token (`name`, `key`, `status`, `expired_time`, `models`) | a key; clients send `sk-` and the key |
| `remain_quota` of a token, `quota` of a user | a rule `balance` (cost_usd, total) of the key, of the account |
| options `ModelRatio`, `CompletionRatio`, `QuotaPerUnit` | `price` |

A balance is what is left at the moment of the import. Source: model/*.go and relay/channeltype/*.go of
songquanpeng/one-api.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meter_proxy.cli.draft import Draft, number, plain, price
from meter_proxy.config.secrets import digest
from meter_proxy.errors import ConfigError

SQLITE_MAGIC = b"SQLite format 3\0"
MAX_JSON_BYTES = 256 * 1024**2
TABLES = ("channels", "tokens", "users", "options")
ENABLED, DISABLED, EXHAUSTED = 1, 2, 4
QUOTA_PER_USD = Decimal(500_000)  # unless the option QuotaPerUnit says otherwise
LAST_INSTANT = 253_402_300_799  # 9999-12-31

# Channel types that speak OpenAI's API under /v1 of their base URL, and the URL that an empty one means.
OPENAI_TYPES = {
    1: "https://api.openai.com", 2: "https://oa.api2d.net", 4: "https://api.closeai-proxy.xyz",
    5: "https://api.openai-sb.com", 6: "https://api.openaimax.com", 7: "https://api.ohmygpt.com", 8: "",
    10: "https://api.aiproxy.io", 12: "https://api.api2gpt.com", 13: "https://api.aigc2d.com",
    19: "https://ai.360.cn", 20: "https://openrouter.ai/api", 25: "https://api.moonshot.cn",
    26: "https://api.baichuan-ai.com", 28: "https://api.mistral.ai", 29: "https://api.groq.com/openai",
    30: "http://localhost:11434", 31: "https://api.lingyiwanwu.com", 32: "https://api.stepfun.com",
    36: "https://api.deepseek.com", 39: "https://api.together.xyz",
}  # fmt: skip

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]


def read(path: Path) -> Tables:
    """Read the tables. Raises `ConfigError` for a file that holds none, `OSError` for one that cannot be read."""
    with path.open("rb") as file:
        head = file.read(len(SQLITE_MAGIC))
    return _from_sqlite(path) if head == SQLITE_MAGIC else _from_json(path)


def _from_sqlite(path: Path) -> Tables:
    """Read only: a running one-api is not disturbed."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            names = {row["name"] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"channels", "tokens"} <= names:
                raise ConfigError([f"{path}: no one-api database: it has no tables `channels` and `tokens`"])
            return {
                name: [dict(row) for row in database.execute(f"SELECT * FROM {name}")]  # one of four fixed names
                for name in TABLES
                if name in names
            }
    except sqlite3.Error as exc:
        raise ConfigError([f"{path}: cannot read the database: {exc}"]) from exc


def _from_json(path: Path) -> Tables:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise ConfigError([f"{path}: neither a SQLite database nor JSON: {exc}"]) from exc
    if not isinstance(document, dict) or not {"channels", "tokens"} & document.keys():
        raise ConfigError([f"{path}: no one-api export: it has neither `channels` nor `tokens`"])
    tables: dict[str, Sequence[Row]] = {}
    for name in TABLES:
        rows = document.get(name, [])
        rows = rows.get("data") if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError([f"{path}: {name}: must be a list of objects"])
        tables[name] = rows
    return tables


def translate(tables: Tables) -> Draft:
    """Write a draft."""
    draft = Draft()
    options = {str(row.get("key")): row.get("value") for row in tables.get("options", ())}
    per_usd = number(options.get("QuotaPerUnit")) or QUOTA_PER_USD
    channels = sorted(tables.get("channels", ()), key=lambda row: (-_int(row, "priority"), _int(row, "id")))
    for channel in channels:
        _channel(draft, channel)
    _prices(draft, _mapping(options.get("ModelRatio")), _mapping(options.get("CompletionRatio")), per_usd)
    accounts = _accounts(draft, tables, per_usd)
    for token in tables.get("tokens", ()):
        _token(draft, token, accounts, per_usd)
    if "GroupRatio" in options:
        draft.note("option GroupRatio: one price for all here")
    if tables.get("tokens") and not tables.get("users"):
        draft.note("users are not in the file: what is left of their quotas does not limit their keys")
    if not draft.keys:
        draft.note("there are no tokens: every caller is anonymous until there are keys")
    return draft


def _channel(draft: Draft, channel: Row) -> None:
    where = f"channel {channel.get('name') or channel.get('id')}"
    kind = _int(channel, "type")
    if _int(channel, "status", ENABLED) != ENABLED:
        draft.note(f"{where}: left out: it is disabled")
        return
    if kind not in OPENAI_TYPES:
        draft.note(f"{where}: left out: type {kind} does not speak OpenAI's API, and nothing is translated")
        return
    base_url = str(channel.get("base_url") or OPENAI_TYPES[kind]).rstrip("/")
    if not base_url or "{" in base_url:
        draft.note(f"{where}: left out: it has no base_url that can be used as it is")
        return
    keys = str(channel.get("key") or "").split()
    if not keys:
        draft.note(f"{where}: its key is not in the file: set api_key or api_key_file")
    elif len(keys) > 1:
        draft.note(f"{where}: has {len(keys)} keys: the first is used")
    name = str(channel.get("name") or f"channel-{channel.get('id')}")
    base_url = base_url if base_url.endswith("/v1") else f"{base_url}/v1"
    upstream = draft.upstream(name, base_url, keys[0] if keys else None)
    sent = _mapping(channel.get("model_mapping"))
    for model in _names(channel.get("models")):
        draft.model(model, upstream, str(sent.get(model) or model))
    if (group := str(channel.get("group") or "default")) != "default":
        draft.note(f"{where}: group {group}: who may use it is said by the `models` of keys here")


def _prices(draft: Draft, ratios: Row, completions: Row, per_usd: Decimal) -> None:
    """A ratio of 1 is one unit of quota per token."""
    missing = []
    for name, model in draft.models.items():
        ratio, completion = number(ratios.get(name)), number(completions.get(name))
        if ratio is None or completion is None:
            missing.append(name)
        else:
            model.update(price(ratio / per_usd, ratio * completion / per_usd))
    if missing:
        draft.note(f"no price in the file (one-api has a built-in list); set `price` of: {', '.join(missing)}")


def _accounts(draft: Draft, tables: Tables, per_usd: Decimal) -> dict[int, str]:
    """The account of each user who has tokens; one without a rule is of a user whose keys are to be disabled."""
    owners = {_int(token, "user_id") for token in tables.get("tokens", ())}
    accounts: dict[int, str] = {}
    for user in tables.get("users", ()):
        if _int(user, "id") not in owners:
            continue
        account = accounts[_int(user, "id")] = draft.new_id(str(user.get("username") or f"user-{user.get('id')}"))
        whose = f"user {account}"
        rules = _balance(draft, whose, _int(user, "quota"), per_usd, list(draft.models))
        if rules is not None and _int(user, "status", ENABLED) != ENABLED:
            draft.note(f"{whose}: is disabled: its keys are imported as disabled")
            rules = None
        draft.accounts[account] = {"quotas": rules or []}
    return accounts


def _token(draft: Draft, token: Row, accounts: Mapping[int, str], per_usd: Decimal) -> None:
    name = str(token.get("name") or f"token-{token.get('id')}")
    whose = f"token {name}"
    secret = str(token.get("key") or "").strip()
    if not secret or "*" in secret:
        draft.note(f"{whose}: left out: its key is not in the file")
        return
    secret = secret if secret.startswith("sk-") else f"sk-{secret}"
    entry: dict[str, Any] = {"id": draft.new_id(name), "secret": digest(secret.encode())}
    account = accounts.get(_int(token, "user_id"))
    if account is not None:
        entry["account"] = account
    expires = _int(token, "expired_time", -1)
    if 0 < expires <= LAST_INSTANT:
        entry["expires_at"] = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
    is_limited = token.get("model_limits_enabled", True)  # new-api's two columns
    asked = _names(token.get("models") or (token.get("model_limits") if is_limited else None))
    models = [model for model in asked if model in draft.models]
    if models:
        entry["models"] = models
    if token.get("subnet") or token.get("allow_ips"):
        draft.note(f"{whose}: its limit on addresses has no equivalent: let the edge in front do it")
    rules: list[dict[str, Any]] | None = []
    if asked and not models:
        draft.note(f"{whose}: none of its models was imported: it is imported as disabled")
        rules = None
    elif not token.get("unlimited_quota"):
        rules = _balance(draft, whose, _int(token, "remain_quota"), per_usd, models or list(draft.models))
    user_has_nothing = account is not None and not draft.accounts[account]["quotas"]
    if rules is None or user_has_nothing or _int(token, "status", ENABLED) in (DISABLED, EXHAUSTED):
        entry["disabled"] = True
    entry["quotas"] = rules or "unlimited"
    draft.keys.append(entry)


def _balance(
    draft: Draft, whose: str, left: int, per_usd: Decimal, reach: Sequence[str]
) -> list[dict[str, Any]] | None:
    """A rule over what is left, for the models in `reach`.

    None, and a note, when nothing is left, or it cannot be counted for want of prices: who was limited there shall not
    be unlimited here, so such keys are disabled.
    """
    amount = plain((Decimal(max(0, left)) / per_usd).quantize(Decimal("0.000001")))
    if amount <= 0:
        draft.note(f"{whose}: nothing is left of its quota: imported as disabled")
        return None
    rule = {"name": "balance", "cost_usd": amount, "per": "total"}
    if not any("price" in draft.models[name] for name in reach):
        draft.note(
            f"{whose}: {amount} USD are left, and no model has a price to count them by: imported as disabled; add "
            f"prices, the rule {{name: balance, cost_usd: {amount}, per: total}}, and take out `disabled`"
        )
        return None
    return [rule]


def _int(row: Row, name: str, default: int = 0) -> int:
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _names(value: object) -> list[str]:
    """A comma-separated list, each name once."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in str(value or "").split(",")))))


def _mapping(value: object) -> Row:
    """A JSON object in a text; empty for everything else."""
    try:
        document = json.loads(value) if isinstance(value, str) and value else value
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
