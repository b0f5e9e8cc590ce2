"""The users of the roles on the private RabbitMQ node; their passwords are in its folder. Its own user, `atelier`, is the administrator."""

import hashlib
import json
from collections.abc import Mapping

from ops.broker_roles import Role, broker_roles
from ops.broker_users import broker_definitions, import_with_rabbitmqctl, load_passwords, url_of_user, vhost_of
from ops.local.rabbitmq import RabbitNode
from ops.settings import BrokerUserSettings

PASSWORDS_FILE = "users.json"


class RoleNode:
    """The private node with the users of the roles. `urls`: the URL of each role, after `start`."""

    def __init__(self, node: RabbitNode, settings: BrokerUserSettings) -> None:
        self.node, self._settings = node, settings
        self.urls: dict[str, str] = {}

    def start(self) -> None:
        self.node.start()
        self.urls = create_broker_users(self.node, self._settings)

    def stop(self) -> None:
        self.node.stop()


def create_broker_users(node: RabbitNode, settings: BrokerUserSettings) -> dict[str, str]:
    """Create or update the users on the running node, and return the URL of each role. Raises SetupError.

    The node's data records what was applied, so that a node that has these users already is not changed.
    """
    roles = broker_roles(foreign_queue=settings.publisher_foreign_queue)
    passwords = load_passwords(roles.values(), node.folder / PASSWORDS_FILE, settings)
    applied, digest = node.folder / "data" / "users.applied", digest_of(roles, passwords)
    if not applied.exists() or applied.read_text() != digest:
        definitions = broker_definitions(roles.values(), passwords, vhost_of(node.url))
        import_with_rabbitmqctl([node.control_program], node.environment, definitions)
        applied.write_text(digest)
    return {name: url_of_user(node.url, role.user, passwords[role.user]) for name, role in roles.items()}


def digest_of(roles: Mapping[str, Role], passwords: Mapping[str, str]) -> str:
    document = json.dumps([[role.to_json() for role in roles.values()], dict(passwords)], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()
