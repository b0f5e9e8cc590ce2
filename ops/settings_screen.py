"""`atelier settings`: every setting with its default, unit and meaning, as text or JSON."""

import json
import sys
from argparse import Namespace

from rich.console import Console
from rich.table import Table

from ops.documents.settings_book import Setting, every_setting


def settings(arguments: Namespace) -> int:
    wanted = [setting for setting in every_setting() if not arguments.words or matches(setting, arguments.words)]
    if arguments.json:
        sys.stdout.write(json.dumps([setting.told() for setting in wanted], indent=2, ensure_ascii=False) + "\n")
    else:
        Console(soft_wrap=False).print(table(wanted))
    return 0 if wanted else 1


def matches(setting: Setting, words: list[str]) -> bool:
    return any(word.upper() in name for word in words for name in setting.names)


def table(settings: list[Setting]) -> Table:
    drawn = Table("name", "default", "unit", "meaning", box=None, pad_edge=False)
    for setting in settings:
        shown = "(required)" if setting.required else setting.default or "–"
        drawn.add_row("\n".join(setting.names), shown, setting.unit, setting.description)
    return drawn
