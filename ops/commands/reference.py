"""`atelier settings` prints the settings as a table or JSON; `atelier asyncapi` writes the AsyncAPI document."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ops.docgen.asyncapi.document import build_document, to_yaml
from ops.docgen.settings_catalog import Setting, all_settings


def settings_command(arguments: Namespace) -> int:
    """Returns 1 when no setting matches."""
    settings = [setting for setting in all_settings() if not arguments.words or matches(setting, arguments.words)]
    if arguments.json:
        sys.stdout.write(json.dumps([setting.to_json() for setting in settings], indent=2, ensure_ascii=False) + "\n")
    else:
        Console(soft_wrap=False).print(settings_table(settings))
    return 0 if settings else 1


def matches(setting: Setting, words: list[str]) -> bool:
    return any(word.upper() in name for word in words for name in setting.names)


def settings_table(settings: list[Setting]) -> Table:
    table = Table("name", "default", "unit", "meaning", box=None, pad_edge=False)
    for setting in settings:
        shown = "(required)" if setting.required else setting.default or "–"
        table.add_row("\n".join(setting.names), shown, setting.unit, setting.description)
    return table


def asyncapi_command(arguments: Namespace) -> int:
    document = build_document()
    if arguments.json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    elif arguments.output == Path("-"):
        sys.stdout.write(to_yaml(document))
    else:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(to_yaml(document))
        sys.stderr.write(f"{arguments.output}: {len(document['channels'])} channels, {len(document['components']['messages'])} messages\n")
    return 0
