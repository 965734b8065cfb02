"""Redis of several servers on loopback: three sentinels with a primary and a replica, and a cluster of three."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from redis import Redis

from tests.support.servers import ChildServer, StoreServer, free_port, installed_program
from tests.support.waiting import until_blocking

NAME = "mymaster"
SLOTS = 16_384


class SentinelServer(ChildServer):
    """One sentinel; notices a dead primary after half a second."""

    def __init__(self, directory: Path, primary_port: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        path = directory / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {primary_port} 2\n"
            f"sentinel down-after-milliseconds {NAME} 500\n"
            f"sentinel failover-timeout {NAME} 2000\n"
        )
        super().__init__([installed_program("redis-server"), str(path), "--sentinel"], directory)

    def answers(self) -> bool:
        with contextlib.suppress(Exception), Redis(port=self.port) as client:
            return bool(client.ping())
        return False


class Sentinels:
    """A primary, a replica, three sentinels."""

    def __init__(self, primary: StoreServer, replica: StoreServer, sentinels: list[SentinelServer]) -> None:
        self.primary = primary
        self.replica = replica
        self.sentinels = sentinels
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{hosts}/{NAME}"


@contextlib.contextmanager
def running_sentinels(directory: Path) -> Iterator[Sentinels]:
    """Started, replicating, and agreed on who is who."""
    program = installed_program("redis-server")
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(StoreServer(program, directory / "primary"))
        replica = stack.enter_context(StoreServer(program, directory / "replica"))
        with replica.client() as client:
            client.replicaof("127.0.0.1", primary.port)
            until_blocking(lambda: dict(client.info("replication"))["master_link_status"] == "up", "replication")
        sentinels = [stack.enter_context(SentinelServer(directory / f"sentinel{n}", primary.port)) for n in range(3)]
        for sentinel in sentinels:
            with Redis(port=sentinel.port, decode_responses=True) as client:

                def knows_all(client: Redis = client) -> bool:
                    state: Any = client.sentinel_master(NAME)
                    return int(state["num-slaves"]) >= 1 and int(state["num-other-sentinels"]) == 2

                until_blocking(knows_all, "the sentinels know each other")
        yield Sentinels(primary, replica, sentinels)


class ClusterNode(StoreServer):
    """One server of a cluster."""

    def __init__(self, directory: Path) -> None:
        super().__init__(installed_program("redis-server"), directory, port=free_port())
        self._argv += ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
        self._argv += ["--cluster-node-timeout", "1000", "--cluster-announce-ip", "127.0.0.1"]


class Cluster:
    """Three primaries that share the slots."""

    def __init__(self, nodes: list[ClusterNode]) -> None:
        self.nodes = nodes
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def hashes(self, pattern: str) -> dict[str, dict[str, str]]:
        """All hashes of all servers under names like `pattern`."""
        found: dict[str, dict[str, str]] = {}
        for node in self.nodes:
            with node.client() as client:
                for name in client.scan_iter(pattern):
                    found[str(name)] = client.hgetall(name)
        return found


@contextlib.contextmanager
def running_cluster(directory: Path) -> Iterator[Cluster]:
    """Started, met, and whole."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(ClusterNode(directory / f"node{n}")) for n in range(3)]
        for number, node in enumerate(nodes):
            with node.client() as client:
                command: Any = client.execute_command
                first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
                command("CLUSTER ADDSLOTSRANGE", first, last)
                command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number:
                    command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        for node in nodes:
            with node.client() as client:

                def is_whole(client: Redis = client) -> bool:
                    info = cast(Any, client).execute_command("CLUSTER INFO")
                    return bool(info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3")

                until_blocking(is_whole, "the cluster is whole")
        yield Cluster(nodes)
