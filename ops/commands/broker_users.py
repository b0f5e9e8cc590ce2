"""`atelier topology --users`: prints or applies one RabbitMQ user and permission set per role.

Passwords come from the settings (RABBITMQ_ACTOR_PASSWORD …), else from a file that is created with mode 0600. They are printed with
`--passwords` only.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.settings import DeadLetterSettings
from ops.broker_roles import DEFAULT_EXCHANGE, Role, broker_roles
from ops.broker_users import (
    broker_definitions,
    import_over_http,
    import_with_rabbitmqctl,
    load_passwords,
    url_of_user,
    vhost_of,
)
from ops.errors import SetupError
from ops.local.rabbitmq import RabbitNode, accepts_amqp
from ops.local.rabbitmq_install import find_server_script
from ops.local.rabbitmq_users import PASSWORDS_FILE
from ops.settings import BrokerUserSettings, LocalSettings

FOREIGN_QUEUE_WARNING = f"""\
The user atelier-publisher may write to {DEFAULT_EXCHANGE}, which reaches every queue by its name: it can add messages to work queues,
dead-letter queues and the reply queues of others. RabbitMQ cannot limit the default exchange to one queue.
"""


def configured_roles(settings: BrokerUserSettings, *, foreign_queue: bool = False) -> dict[str, Role]:
    return broker_roles(
        foreign_queue=foreign_queue or settings.publisher_foreign_queue, dead_letter_queues=DeadLetterSettings().foreign_queues
    )


def users(arguments: Namespace) -> int:
    """Raises SetupError when the broker cannot be reached or refuses the users."""
    settings, local = BrokerUserSettings(), LocalSettings()
    roles = configured_roles(settings, foreign_queue=arguments.foreign_queue)
    if arguments.apply or arguments.definitions or arguments.passwords:
        passwords = load_passwords(roles.values(), passwords_file(local), settings)
        if arguments.apply:
            apply_users(roles, passwords, local, arguments.management)
        if arguments.definitions:
            print_json(broker_definitions(roles.values(), passwords, vhost_of(broker_url(local) or "amqp://localhost/")))
            return 0
    shown = [describe(role, passwords[role.user] if arguments.passwords else None, local) for role in roles.values()]
    if arguments.json:
        print_json({"users": shown})
    else:
        sys.stdout.write(format_users(shown) + applied_remark(local, applied=arguments.apply))
    if DEFAULT_EXCHANGE in roles["publisher"].write.replace("\\", ""):
        sys.stderr.write(FOREIGN_QUEUE_WARNING)
    return 0


def local_rabbitmq_folder(local: LocalSettings) -> Path:
    return local.local_folder.resolve() / "rabbitmq"


def passwords_file(local: LocalSettings) -> Path:
    return local_rabbitmq_folder(local) / PASSWORDS_FILE


def private_node(local: LocalSettings) -> RabbitNode | None:
    """The private node, when no other broker is configured and it runs."""
    folder = local_rabbitmq_folder(local)
    if local.given_amqp_url or not (folder / "identity.json").exists():
        return None
    node = RabbitNode(folder, find_server_script(local) or folder)
    return node if accepts_amqp(node.identity.amqp) else None


def broker_url(local: LocalSettings) -> str | None:
    node = private_node(local)
    return local.given_amqp_url or (node.url if node else None)


def apply_users(roles: Mapping[str, Role], passwords: Mapping[str, str], local: LocalSettings, management: str | None) -> None:
    """Through the HTTP API with `management`, else with `rabbitmqctl`: that of the private node, or of this machine's broker."""
    url, node = broker_url(local), private_node(local)
    if url is None:
        raise SetupError("No broker is configured and the private node does not run: set AMQP_URL, or start `atelier up`.")
    definitions = broker_definitions(roles.values(), passwords, vhost_of(url))
    if management:
        import_over_http(management, url, definitions)
    else:
        import_with_rabbitmqctl([node.control_program if node else "rabbitmqctl"], node.environment if node else None, definitions)


def describe(role: Role, password: str | None, local: LocalSettings) -> dict[str, Any]:
    if password is None:
        return role.to_json()
    url = broker_url(local)
    return role.to_json() | {"password": password} | ({"url": url_of_user(url, role.user, password)} if url else {})


def format_users(shown: list[dict[str, Any]]) -> str:
    lines = []
    for role in shown:
        lines.append(f"{role['user']}" + (f" ({', '.join(role['tags'])})" if role["tags"] else ""))
        lines += [f"  {name:<9} {role[name]}" for name in ("configure", "write", "read", "password", "url") if name in role]
        lines += [f"  keys      {exchange}: {keys}" for exchange, keys in role["writable_keys"].items()]
    return "\n".join(lines) + "\n"


def applied_remark(local: LocalSettings, *, applied: bool) -> str:
    if not applied:
        return "--apply creates or updates these users.\n"
    return f"Applied. The passwords are those of the settings, else in {passwords_file(local)}.\n"


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
