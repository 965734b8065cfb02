"""`top` and `healthcheck` as they are typed, against a small server of the agreed shapes, and against a real proxy."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin_listener import AdminListener, live, quota, stream
from tests.support.config import ENVIRONMENT, basic_config, write_config
from tests.support.proc import run_command, running_proxy
from tests.support.servers import free_port


@pytest.fixture
def admin() -> Iterator[AdminListener]:
    """An admin listener with one stream and one quota."""
    with AdminListener() as listener:
        listener.answers["/api/live"] = (200, live([stream()]))
        listener.answers["/api/quotas"] = (200, {"total": 1, "data": [quota()]})
        listener.answers["/readyz"] = (200, {"ready": True, "reasons": []})
        yield listener


async def test_top_into_a_pipe_is_one_plain_frame(admin: AdminListener) -> None:
    """No escape sequence, nothing on stderr, exit 0; `--once` changes nothing about it."""
    code, out, err = await run_command("top", admin.url)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "1 in flight   3.2 requests/s" in out
    assert "tokens-day" in out
    assert "gpt-4o" in out
    code, once, _ = await run_command("top", admin.url.removeprefix("http://"), "--once")
    assert (code, len(once.splitlines())) == (0, len(out.splitlines()))


async def test_top_for_programs_is_what_the_server_said(admin: AdminListener) -> None:
    """One JSON document of both answers."""
    code, out, _ = await run_command("top", admin.url, "--once", "--format", "json")
    assert code == 0
    assert json.loads(out) == {"live": live([stream()]), "quotas": {"total": 1, "data": [quota()]}}


async def test_top_against_a_server_without_quotas_or_parameters(admin: AdminListener) -> None:
    """It says what is missing, and asks again without the parameter that is not known there."""
    del admin.answers["/api/quotas"]
    admin.answers["/api/live?limit=1000"] = (400, {"error": {"message": "There is no parameter 'limit' here."}})
    code, out, _ = await run_command("top", admin.url, "--once")
    assert code == 0
    assert "QUOTAS  this server does not tell" in out


async def test_top_against_the_real_proxy(tmp_path: Path) -> None:
    """Whatever of the shapes this version has: a frame, exit 0."""
    config = write_config(tmp_path, basic_config("http://127.0.0.1:9/v1", tmp_path))
    async with running_proxy(config, env=ENVIRONMENT) as proxy:
        code, out, err = await run_command("top", proxy.admin_url, "--once")
        assert (code, err) == (0, "")
        assert "ready" in out
        assert "1/1 worker\n" in out or "1/1 worker " in out
        assert "0 in flight" in out
        code, out, _ = await run_command("healthcheck", proxy.admin_url)
        assert (code, out) == (0, "ready\n")
        code, out, _ = await run_command("healthcheck", proxy.admin_url, "--live", "--format", "json")
        assert (code, json.loads(out)) == (0, {"ok": True, "message": "ok"})


async def test_the_admin_token_comes_from_the_environment() -> None:
    """Not from the command line, where everybody on the machine can read it."""
    with AdminListener(token="s3cret") as admin:
        admin.answers["/api/live"] = (200, live())
        admin.answers["/api/quotas"] = (200, {"total": 0, "data": []})
        code, _, err = await run_command("top", admin.url, "--once")
        assert (code, err) == (
            1,
            f"meter-proxy: {admin.url} wants the admin_token: set METER_PROXY_ADMIN_TOKEN\n",
        )
        code, out, _ = await run_command("top", admin.url, "--once", env={"METER_PROXY_ADMIN_TOKEN": "s3cret"})
        assert code == 0
        assert "s3cret" not in out


@pytest.mark.parametrize("words", [("top", "--once"), ("healthcheck",)])
async def test_nobody_there_is_one_line_and_exit_1(words: tuple[str, ...]) -> None:
    """It says what to look at."""
    url = f"http://127.0.0.1:{free_port()}"
    code, out, err = await run_command(words[0], url, *words[1:])
    assert code == 1
    assert f"cannot reach {url}: Connection refused; does `meter-proxy serve` run?\n" in out + err
    assert (out + err).count("\n") == 1


async def test_healthcheck_tells_why_not(admin: AdminListener) -> None:
    """Exit 1 with the reasons; another web server's 200 is no good answer either."""
    admin.answers["/readyz"] = (503, {"ready": False, "reasons": ["worker 1 does not run"]})
    assert await run_command("healthcheck", admin.url) == (1, "not ready: worker 1 does not run\n", "")
    admin.answers["/readyz"] = (200, {"hello": "world"})
    code, out, _ = await run_command("healthcheck", admin.url)
    assert (code, out) == (1, f"{admin.url}/readyz answered 200, as no meter-proxy does\n")
