"""`atelier settings`: every setting with its default, unit and meaning, as text or JSON."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ops.docgen.asyncapi.document import build_document, to_yaml
from ops.docgen.settings_catalog import Setting, all_settings


def settings_command(arguments: Namespace) -> int:
    wanted = [setting for setting in all_settings() if not arguments.words or matches(setting, arguments.words)]
    if arguments.json:
        sys.stdout.write(json.dumps([setting.to_json() for setting in wanted], indent=2, ensure_ascii=False) + "\n")
    else:
        Console(soft_wrap=False).print(settings_table(wanted))
    return 0 if wanted else 1


def matches(setting: Setting, words: list[str]) -> bool:
    return any(word.upper() in name for word in words for name in setting.names)


def settings_table(settings: list[Setting]) -> Table:
    drawn = Table("name", "default", "unit", "meaning", box=None, pad_edge=False)
    for setting in settings:
        shown = "(required)" if setting.required else setting.default or "–"
        drawn.add_row("\n".join(setting.names), shown, setting.unit, setting.description)
    return drawn


def asyncapi_command(arguments: Namespace) -> int:
    drawn = build_document()
    if arguments.json:
        sys.stdout.write(json.dumps(drawn, indent=2, ensure_ascii=False) + "\n")
    elif arguments.output == Path("-"):
        sys.stdout.write(to_yaml(drawn))
    else:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(to_yaml(drawn))
        sys.stderr.write(f"{arguments.output}: {len(drawn['channels'])} channels, {len(drawn['components']['messages'])} messages\n")
    return 0
