"""Three RabbitMQ nodes on this machine as one cluster: they share a cookie and an epmd, and have their own ports and folders."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from ops.local.rabbitmq import RabbitNode

NODE_NAMES = ("one", "two", "three")
CLUSTER_CONFIGURATION = "".join(
    ["cluster_formation.peer_discovery_backend = classic_config\n", "cluster_partition_handling = pause_minority\n"]
    + [f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n" for number, name in enumerate(NODE_NAMES, 1)]
)


class ClusterNode(RabbitNode):
    """One node. The first node starts the cluster's epmd, and its password is that of all nodes."""

    def __init__(self, folder: Path, server: Path, first_node: "ClusterNode | None" = None) -> None:
        super().__init__(folder, server)
        self._first = first_node

    @cached_property
    def environment(self) -> dict[str, str]:
        first = self._first or self
        home = first.folder.parent / "home"
        home.mkdir(exist_ok=True)
        variables = {"HOME": str(home), "ERL_EPMD_PORT": str(first.identity.epmd), "RABBITMQ_NODENAME": f"{self.folder.name}@localhost"}
        return super().environment | variables

    @property
    def url(self) -> str:
        password = (self._first or self).identity.password
        return f"amqp://atelier:{password}@127.0.0.1:{self.identity.amqp}/"

    def _write_configuration(self) -> None:
        super()._write_configuration()
        configuration = self.folder / "rabbitmq.conf"
        password = (self._first or self).identity.password
        configuration.write_text(configuration.read_text().replace(self.identity.password, password) + CLUSTER_CONFIGURATION)

    def _start_epmd(self) -> None:
        if self._first is None:
            super()._start_epmd()


class RabbitCluster:
    def __init__(self, folder: Path, server: Path) -> None:
        first = ClusterNode(folder / NODE_NAMES[0], server)
        self.nodes = [first, *(ClusterNode(folder / name, server, first) for name in NODE_NAMES[1:])]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def start(self) -> None:
        """Start all nodes at once: the first one forms the cluster, the others join it."""
        self.nodes[0]._write_configuration()
        self.nodes[0]._start_epmd()
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(ClusterNode.start, self.nodes))

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()
