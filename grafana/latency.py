"""Latency and upstreams: where the time goes, and who fails."""

from grafana.panels import (
    Column,
    Json,
    Query,
    chosen,
    dashboard,
    grown,
    heatmap,
    quantile,
    rate,
    row,
    select,
    share,
    table,
    timeseries,
)

DURATION = "gen_ai_server_request_duration_seconds"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
PER_TOKEN = "gen_ai_server_time_per_output_token_seconds"
OVERHEAD, SYNC = "meter_proxy_overhead_seconds", "meter_proxy_sync_seconds"
WHERE = 'gen_ai_request_model=~"$model",server_address=~"$server"'
OF_SERVER = 'server_address=~"$server"'
SERVER = "server_address, server_port"
FAILED = 'error_type!="",error_type!="client_disconnected",error_type!="drained"'
QUANTILES = (0.5, 0.95, 0.99)


def latency() -> Json:
    """The dashboard."""
    count = f"{DURATION}_count"
    variables = [
        chosen("server", "Server", f"label_values({select(count)}, server_address)"),
        chosen("model", "Model", f"label_values({select(count, OF_SERVER)}, gen_ai_request_model)"),
    ]
    return dashboard(
        "meter-proxy-latency",
        "meter-proxy / Latency & upstreams",
        "OpenTelemetry's histograms for model servers, errors of upstreams, what the proxy itself adds, and the store.",
        variables,
        [*_latency(), *_models(), *_upstreams(), *_ours()],
    )


def _quantiles(metric: str, *matchers: str) -> list[Query]:
    return [Query(quantile(of, metric, *matchers), f"{of:.0%}") for of in QUANTILES]


def _latency() -> list[Json]:
    duration, first, per_token = (
        "From admission to the end of the exchange, all outcomes.",
        "Of streams, from admission to the first token.",
        "Of completed streams, the time per token after the first.",
    )
    return [
        row("Latency"),
        timeseries("Duration", duration, *_quantiles(DURATION, WHERE), unit="s"),
        heatmap("Duration, spread", duration, DURATION, WHERE),
        timeseries("Time to the first token", first, *_quantiles(FIRST_TOKEN, WHERE), unit="s"),
        heatmap("Time to the first token, spread", first, FIRST_TOKEN, WHERE),
        timeseries("Time per output token", per_token, *_quantiles(PER_TOKEN, WHERE), unit="s"),
        heatmap("Time per output token, spread", per_token, PER_TOKEN, WHERE),
    ]


def _models() -> list[Json]:
    by = "gen_ai_request_model"

    def over_range(of: float, metric: str) -> str:
        return f"histogram_quantile({of}, {grown(f'{metric}_bucket', WHERE, by=f'le, {by}')})"

    return [
        row("Models"),
        table(
            "Models",
            "Of the time shown. Empty where a model had no streams.",
            [by],
            Column("Exchanges", grown(f"{DURATION}_count", WHERE, by=by), "short"),
            Column("Duration, 95%", over_range(0.95, DURATION), "s"),
            Column("First token, 50%", over_range(0.5, FIRST_TOKEN), "s"),
            Column("First token, 95%", over_range(0.95, FIRST_TOKEN), "s"),
            Column("Per output token, 50%", over_range(0.5, PER_TOKEN), "s"),
            w=24,
        ),
    ]


def _upstreams() -> list[Json]:
    count = f"{DURATION}_count"
    failed, settled = rate(count, WHERE, FAILED, by=SERVER), rate(count, WHERE, by=SERVER)
    name = "{{server_address}}:{{server_port}}"
    return [
        row("Upstreams"),
        timeseries(
            "Upstreams up",
            "1: the upstream answered when it was last tried.",
            Query(f"min by (upstream) ({select('meter_proxy_upstream_up')})", "{{upstream}}"),
            unit="bool_yes_no",
            most=1,
        ),
        timeseries("Exchanges", "Settled exchanges per second.", Query(settled, name), unit="reqps"),
        timeseries(
            "Errors by type",
            "A status of the upstream, `upstream_failed` (reset, error in the stream), `upstream_timeout`, `crashed`. "
            "Hang-ups of clients are no errors.",
            Query(rate(count, WHERE, FAILED, by=f"{SERVER}, error_type"), name + " {{error_type}}"),
            unit="reqps",
        ),
        timeseries(
            "Error ratio",
            "Share of the settled exchanges.",
            Query(share(failed, settled), name),
            unit="percentunit",
            most=1,
        ),
    ]


def _ours() -> list[Json]:
    return [
        row("The proxy and its store"),
        timeseries(
            "Overhead",
            "What the proxy adds: to a request before it is sent on, to the first byte of its answer, to a chunk "
            "(sampled).",
            *(Query(quantile(of, OVERHEAD, by="stage"), f"{{{{stage}}}} {of:.0%}") for of in (0.5, 0.99)),
            unit="s",
        ),
        heatmap("Overhead per chunk, spread", "Of sampled chunks.", OVERHEAD, 'stage="chunk"'),
        timeseries("Sync latency", "Until the store took a batch of the books.", *_quantiles(SYNC), unit="s"),
        heatmap("Sync latency, spread", "Until the store took a batch of the books.", SYNC),
    ]
