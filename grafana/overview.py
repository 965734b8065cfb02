"""Overview: is it well, how busy is it, what does it cost."""

from grafana.panels import (
    RATE,
    RED,
    YELLOW,
    Column,
    Json,
    Query,
    dashboard,
    quantile,
    rate,
    row,
    select,
    share,
    stat,
    table,
    timeseries,
)

REQUESTS = "meter_proxy_requests_total"
FAILED = 'outcome=~"upstream_failed|upstream_timeout|crashed"'
ADMITTED = 'outcome!="denied"'
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
COST_PER_HOUR = "3600 * "


def overview() -> Json:
    """The dashboard."""
    return dashboard(
        "meter-proxy-overview",
        "meter-proxy / Overview",
        "Requests, errors, tokens, cost, latency and the health of the books.",
        [],
        [*_now(), *_traffic(), *_tokens(), *_streams(), *_books()],
    )


def _now() -> list[Json]:
    errors = share(rate(REQUESTS, FAILED), rate(REQUESTS, ADMITTED))
    return [
        stat(
            "Instances up",
            "Instances that Prometheus could scrape last.",
            Query(f"count({select('meter_proxy_build_info')})", "up"),
            "short",
        ),
        stat("Requests", "All requests per second, refused ones too.", Query(rate(REQUESTS), "requests"), "reqps"),
        stat(
            "Error ratio",
            "Share of the admitted requests that an upstream or a crash of ours made fail.",
            Query(errors, "errors"),
            "percentunit",
            thresholds=[(0.01, YELLOW), (0.05, RED)],
        ),
        stat(
            "In flight",
            "Exchanges in flight now.",
            Query(f"sum({select('meter_proxy_inflight_requests')})", "in flight"),
            "short",
        ),
        stat(
            "First token, 95%",
            "95% of the streams had their first token within this time.",
            Query(quantile(0.95, FIRST_TOKEN), "p95"),
            "s",
        ),
        stat(
            "Cost per hour",
            "At the present pace, by the prices in the configuration; 0 for models without a price.",
            Query(COST_PER_HOUR + rate("meter_proxy_cost_usd_total"), "cost"),
            "currencyUSD",
        ),
    ]


def _traffic() -> list[Json]:
    return [
        row("Requests"),
        timeseries(
            "Requests by outcome",
            "How requests ended. `denied`: refused by the proxy; `quota_cut`: a stream ended at a quota; "
            "`client_disconnected`: the client hung up.",
            Query(rate(REQUESTS, by="outcome"), "{{outcome}}"),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "Errors",
            "Failures of upstreams (`upstream_failed`, `upstream_timeout`), answers 4xx of upstreams "
            "(`client_error`) and crashes of ours, by the status that the client got; 0: it was gone.",
            Query(
                rate(REQUESTS, 'outcome=~"upstream_failed|upstream_timeout|client_error|crashed"', by="outcome, code"),
                "{{outcome}} {{code}}",
            ),
            unit="reqps",
        ),
        timeseries(
            "Refused by the proxy",
            "By status: 401 wrong key, 404 unknown model, 429 a quota, 503 the store is away or the proxy is draining.",
            Query(rate(REQUESTS, 'outcome="denied"', by="code"), "{{code}}"),
            unit="reqps",
        ),
        timeseries(
            "In flight by model",
            "Exchanges in flight.",
            Query(f"sum by (model) ({select('meter_proxy_inflight_requests')})", "{{model}}"),
            unit="short",
            stacked=True,
        ),
    ]


def _tokens() -> list[Json]:
    return [
        row("Tokens and cost"),
        timeseries(
            "Tokens in and out",
            "Billed tokens per second. They are billed when an exchange ends.",
            Query(rate("meter_proxy_tokens_total", by="type"), "{{type}}"),
            unit="short",
            axis="tokens/s",
            w=8,
        ),
        timeseries(
            "Output tokens by model",
            "Billed output tokens per second.",
            Query(rate("meter_proxy_tokens_total", 'type="output"', by="model"), "{{model}}"),
            unit="short",
            axis="tokens/s",
            stacked=True,
            w=8,
        ),
        timeseries(
            "Cost per hour by model",
            "At the pace of each moment.",
            Query(COST_PER_HOUR + rate("meter_proxy_cost_usd_total", by="model"), "{{model}}"),
            unit="currencyUSD",
            stacked=True,
            w=8,
        ),
    ]


def _streams() -> list[Json]:
    overhead = "meter_proxy_overhead_seconds"
    return [
        row("Streams"),
        timeseries(
            "Time to the first token",
            "Of streams, from admission.",
            *(Query(quantile(of, FIRST_TOKEN), f"{of:.0%}") for of in (0.5, 0.95, 0.99)),
            unit="s",
            w=8,
        ),
        timeseries(
            "Hang-ups",
            "Clients that left, by how far their answer was. `after_finish` is a completed exchange.",
            Query(rate("meter_proxy_disconnects_total", by="phase"), "{{phase}}"),
            unit="cps",
            w=8,
        ),
        timeseries(
            "Overhead of the proxy, 99%",
            "What the proxy adds: to a request before it is sent on, to the first byte of its answer, to a chunk.",
            Query(quantile(0.99, overhead, by="stage"), "{{stage}}"),
            unit="s",
            w=8,
        ),
    ]


def _books() -> list[Json]:
    free, size = select("meter_proxy_state_dir_free_bytes"), select("meter_proxy_state_dir_size_bytes")
    return [
        row("The books"),
        timeseries(
            "Records not in the store yet",
            "Settled exchanges that Redis has not acknowledged. They are safe in the journal; the quotas of other "
            "machines do not see them yet.",
            Query(select("meter_proxy_unsynced_records"), "{{instance}}"),
            unit="short",
            w=8,
        ),
        timeseries(
            "State",
            "1 is yes. The store is reachable from every worker; the last reload of the configuration was good; "
            "the proxy is draining.",
            Query(select("meter_proxy_redis_up"), "store {{instance}}"),
            Query(select("meter_proxy_config_last_reload_successful"), "configuration {{instance}}"),
            Query(select("meter_proxy_draining"), "draining {{instance}}"),
            unit="bool_yes_no",
            most=1,
            w=8,
        ),
        timeseries(
            "Room for the books",
            "Free share of the disk with the state directory. Without room, requests are refused with 503.",
            Query(f"{free} / {size}", "{{instance}}"),
            unit="percentunit",
            most=1,
            w=8,
        ),
        timeseries(
            "Data lost by the store",
            "Times that Redis no longer had what it had acknowledged. It was told again.",
            Query(
                f"sum by (instance) (increase({select('meter_proxy_redis_regressions_total')}{RATE}))", "{{instance}}"
            ),
            unit="short",
            w=8,
        ),
        timeseries(
            "Odd usage reports",
            "What upstreams reported strangely or not at all, by reason.",
            Query(rate("meter_proxy_bad_usage_total", by="reason"), "{{reason}}"),
            unit="cps",
            w=8,
        ),
        table(
            "Versions",
            "Which version each instance runs.",
            ["instance", "version"],
            Column("Instances", f"sum by (instance, version) ({select('meter_proxy_build_info')})", "short"),
            w=8,
        ),
    ]
