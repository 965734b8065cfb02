"""Billing and quotas: who used what, what is left, and how we know."""

from grafana.panels import (
    Column,
    Json,
    Query,
    bars,
    chosen,
    dashboard,
    grown,
    rate,
    row,
    select,
    share,
    stat,
    table,
    timeseries,
)

COST, TOKENS, REQUESTS = "meter_proxy_cost_usd_total", "meter_proxy_tokens_total", "meter_proxy_requests_total"
LEFT_BY_CLIENT = "meter_proxy_disconnected_output_tokens_total"
DETAILS = "meter_proxy_token_details_total"
KEY_INFO = "meter_proxy_key_info"
OF_ACCOUNT, OF_KEY = 'account=~"$account"', 'key=~"$key"'
WHO = 'key=~"$key",model=~"$model"'
HOLDER = 'key=~"$key|account:$account"'  # of a quota: a key, or an account
GENERATES = 'operation!="embeddings"'
TODAY, THIS_MONTH = "now/d", "now/M"
BOOKS = " What Prometheus saw, with its small errors; bills come from the books (`meter-proxy usage`), in days of UTC."


def billing() -> Json:
    """The dashboard."""
    variables = [
        chosen("account", "Account", f"label_values({select(KEY_INFO)}, account)"),
        chosen("key", "Key", f"label_values({select(KEY_INFO, OF_ACCOUNT)}, key)"),
        chosen("model", "Model", f"label_values({select(COST, OF_KEY)}, model)"),
    ]
    return dashboard(
        "meter-proxy-billing",
        "meter-proxy / Billing & quotas",
        "Tokens and cost by account, key and model; quotas and when they run out; how the counts are known.",
        variables,
        [*_spent(), *_by_key(), *_quotas(), *_basis()],
    )


def _saved(by: str) -> str:
    """Output tokens that hang-ups spared, by these labels: had the streams run on to the mean length of the others."""
    hang_ups = grown(REQUESTS, WHO, GENERATES, 'outcome="client_disconnected"', by=by)
    others = grown(REQUESTS, WHO, GENERATES, 'outcome!~"client_disconnected|denied"', by=by)
    output, until_hang_up = grown(TOKENS, WHO, 'type="output"', by=by), grown(LEFT_BY_CLIENT, WHO, by=by)
    return f"clamp_min({hang_ups} * ({output} - {until_hang_up}) / {others} - {until_hang_up}, 0)"


def _spent() -> list[Json]:
    cached = share(grown(DETAILS, WHO, 'type="input_cached"'), grown(TOKENS, WHO, 'type="input"'))
    return [
        stat(
            "Cost today",
            "Since midnight of your time zone." + BOOKS,
            Query(grown(COST, WHO), "cost"),
            "currencyUSD",
            since=TODAY,
        ),
        stat(
            "Cost this month",
            "Since the first of the month; Prometheus must keep its data that long." + BOOKS,
            Query(grown(COST, WHO), "cost"),
            "currencyUSD",
            since=THIS_MONTH,
        ),
        stat(
            "Tokens today",
            "Since midnight of your time zone." + BOOKS,
            Query(grown(TOKENS, WHO), "tokens"),
            "short",
            since=TODAY,
        ),
        stat(
            "Tokens this month",
            "Since the first of the month; Prometheus must keep its data that long." + BOOKS,
            Query(grown(TOKENS, WHO), "tokens"),
            "short",
            since=THIS_MONTH,
        ),
        stat(
            "Cached share of input",
            "Of the input billed in the time shown, what upstreams reported as read from their cache. 0 also where "
            "they do not report it.",
            Query(cached, "cached"),
            "percentunit",
            over_range=True,
        ),
        stat(
            "Saved by cancelling",
            "An estimate: output tokens that were not generated because clients hung up, if their exchanges had become "
            "as long as the mean of the others of the same model. In the time shown.",
            Query(f"sum({_saved('model')}) or 0 * {grown(TOKENS, WHO)}", "saved"),
            "short",
            over_range=True,
        ),
    ]


def _by_key() -> list[Json]:
    def per_key(title: str, description: str, since: str) -> Json:
        columns = [
            Column("Cost", grown(COST, WHO, by="key"), "currencyUSD"),
            Column("Input tokens", grown(TOKENS, WHO, 'type="input"', by="key"), "short"),
            Column("Output tokens", grown(TOKENS, WHO, 'type="output"', by="key"), "short"),
            Column("Requests", grown(REQUESTS, WHO, 'outcome!="denied"', by="key"), "short"),
        ]
        return table(title, description, ["key"], *columns, since=since)

    # One account per key, also while instances differ in their configuration: else the join would fail.
    account_of = f"topk by (key) (1, max by (key, account) ({select(KEY_INFO, OF_ACCOUNT)}))"
    by_account = f"sum by (account) ({grown(COST, WHO, by='key')} * on (key) group_left (account) {account_of})"
    return [
        row("Who"),
        per_key("Keys today", "Since midnight of your time zone." + BOOKS, TODAY),
        per_key("Keys this month", "Since the first of the month." + BOOKS, THIS_MONTH),
        timeseries(
            "Cost per hour by key",
            "The ten highest at each moment.",
            Query(f"topk(10, 3600 * {rate(COST, WHO, by='key')})", "{{key}}"),
            unit="currencyUSD",
        ),
        timeseries(
            "Tokens by key",
            "Billed tokens per second, input and output; the ten highest at each moment.",
            Query(f"topk(10, {rate(TOKENS, WHO, by='key')})", "{{key}}"),
            unit="short",
            axis="tokens/s",
        ),
        bars("Cost by account", "In the time shown.", Query(by_account, "{{account}}"), "currencyUSD", w=8),
        bars(
            "Top models by cost",
            "In the time shown; the ten highest.",
            Query(f"topk(10, {grown(COST, WHO, by='model')})", "{{model}}"),
            "currencyUSD",
            w=8,
        ),
        bars(
            "Top models by tokens",
            "Input and output in the time shown; the ten highest.",
            Query(f"topk(10, {grown(TOKENS, WHO, by='model')})", "{{model}}"),
            "short",
            w=8,
        ),
    ]


def _quotas() -> list[Json]:
    labels = "key, rule, unit"
    windowed = 'unit!="concurrent"'

    def now(name: str, *matchers: str) -> str:
        # Every instance tells of the same counters in the same Redis: the highest is the newest.
        return f"max by ({labels}) ({select(f'meter_proxy_quota_{name}', HOLDER, *matchers)})"

    # `increase` knows that a counter which falls began anew: as these do with each window.
    used_lately = f"increase({select('meter_proxy_quota_used', HOLDER, windowed)}[1h])"
    pace = f"(max by ({labels}) ({used_lately}) / 3600 > 0)"
    exhausted_in = f"clamp_min({now('limit', windowed)} - {now('used', windowed)}, 0) / {pace}"
    name = "{{key}} {{rule}}"
    return [
        row("Quotas"),
        table(
            "Quotas now",
            "Each quota of the chosen keys and accounts; `account:NAME` is an account's. Full in: at the pace of the "
            "last hour; empty where nothing was used. Where it is full later than it is reset, it holds.",
            ["key", "rule", "unit"],
            Column("Used", now("usage_ratio"), "percentunit", is_bar=True),
            Column("Amount", now("used"), "short"),
            Column("Limit", now("limit"), "short"),
            Column("Reset in", f"{now('reset_timestamp_seconds')} - time() > 0", "s"),
            Column("Full in", exhausted_in, "s"),
            w=24,
        ),
        timeseries(
            "Left of each quota",
            "Burns down to 0 and is full again with the next window. At each moment the twenty with the least left.",
            Query(f"bottomk(20, clamp_min(1 - {now('usage_ratio')}, 0))", name),
            unit="percentunit",
            most=1,
        ),
        timeseries(
            "Time to exhaustion",
            "At the pace of the last hour, resets not considered; no line where nothing was used. At each moment the "
            "twenty that are exhausted first.",
            Query(f"bottomk(20, {exhausted_in})", name),
            unit="s",
        ),
        timeseries(
            "Refused by a quota",
            "Requests that got a 429, by the rule that refused them; the twenty highest at each moment.",
            Query(f"topk(20, {rate('meter_proxy_quota_rejections_total', HOLDER, by='key, rule')})", name),
            unit="reqps",
        ),
        timeseries(
            "Streams cut by a quota",
            "Streams that ended at the event which used up the last token; the twenty highest at each moment.",
            Query(f"topk(20, {rate('meter_proxy_quota_cutoffs_total', HOLDER, by='key, rule')})", name),
            unit="cps",
        ),
    ]


def _basis() -> list[Json]:
    tokens_by_basis, records = "meter_proxy_tokens_by_basis_total", "meter_proxy_usage_records_total"
    known = f"{rate(tokens_by_basis, by='type, basis')} / on (type) group_left () {rate(tokens_by_basis, by='type')}"
    input_cached, input_all = rate(DETAILS, WHO, 'type="input_cached"'), rate(TOKENS, WHO, 'type="input"')
    reasoning, output = rate(DETAILS, WHO, 'type="output_reasoning"'), rate(TOKENS, WHO, 'type="output"')
    return [
        row("How the counts are known"),
        timeseries(
            "Tokens by basis",
            "Share of the billed tokens. `reported` and `running` are the upstream's own counts; `tokenized`, "
            "`counted` (one per event) and `estimated` (bytes / 4) are ours. Of all keys.",
            Query(known, "{{type}} {{basis}}"),
            unit="percentunit",
            most=1,
        ),
        timeseries(
            "Usage records by basis",
            "Settled exchanges per second, by how their output is known; `none`: it was not billed. Of all keys.",
            Query(rate(records, by="basis"), "{{basis}}"),
            unit="cps",
            stacked=True,
        ),
        timeseries(
            "Cached and reasoning share",
            "Cached tokens of the input, reasoning tokens of the output, where upstreams report them.",
            Query(share(input_cached, input_all), "cached of input"),
            Query(share(reasoning, output), "reasoning of output"),
            unit="percentunit",
            most=1,
        ),
        bars(
            "Output tokens and hang-ups",
            "In the time shown: billed for exchanges that the client left, and (an estimate) saved by cancelling them; "
            "see Saved by cancelling.",
            Query(
                f'label_replace({grown(LEFT_BY_CLIENT, WHO)}, "what", "billed until the hang-up", "", "") or '
                f'label_replace(sum({_saved("model")}), "what", "saved by cancelling", "", "")',
                "{{what}}",
            ),
            "short",
        ),
    ]
