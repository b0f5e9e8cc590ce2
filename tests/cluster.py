"""Three RabbitMQ nodes on this machine as one cluster: a cookie, an epmd and names in common, ports and folders of their own."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from ops.local.rabbitmq import RabbitNode

NAMES = ("one", "two", "three")
FORMATION = "".join(
    ["cluster_formation.peer_discovery_backend = classic_config\n", "cluster_partition_handling = pause_minority\n"]
    + [f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n" for number, name in enumerate(NAMES, 1)]
)


class Member(RabbitNode):
    """One node. `epmd`: the port of the cluster's own, which the first node starts. One password for all."""

    def __init__(self, folder: Path, server: Path, first: "Member | None" = None) -> None:
        super().__init__(folder, server)
        self._first = first

    @cached_property
    def environment(self) -> dict[str, str]:
        first = self._first or self
        home = first.folder.parent / "home"
        home.mkdir(exist_ok=True)
        ours = {"HOME": str(home), "ERL_EPMD_PORT": str(first.identity.epmd), "RABBITMQ_NODENAME": f"{self.folder.name}@localhost"}
        return super().environment | ours

    @property
    def url(self) -> str:
        password = (self._first or self).identity.password
        return f"amqp://atelier:{password}@127.0.0.1:{self.identity.amqp}/"

    def _prepare(self) -> None:
        super()._prepare()
        configuration = self.folder / "rabbitmq.conf"
        password = (self._first or self).identity.password
        configuration.write_text(configuration.read_text().replace(self.identity.password, password) + FORMATION)

    def _start_epmd(self) -> None:
        if self._first is None:
            super()._start_epmd()


class Cluster:
    def __init__(self, folder: Path, server: Path) -> None:
        first = Member(folder / NAMES[0], server)
        self.members = [first, *(Member(folder / name, server, first) for name in NAMES[1:])]

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def start(self) -> None:
        """All at once: the first to come forms the cluster, the others join."""
        self.members[0]._prepare()
        self.members[0]._start_epmd()
        with ThreadPoolExecutor(len(self.members)) as threads:
            list(threads.map(Member.start, self.members))

    def stop(self) -> None:
        for member in reversed(self.members):
            member.stop()
