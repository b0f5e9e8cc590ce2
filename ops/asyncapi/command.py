"""`atelier asyncapi`: writes the document, or prints it."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from ops.asyncapi.document import document, text


def asyncapi(arguments: Namespace) -> int:
    drawn = document()
    if arguments.json:
        sys.stdout.write(json.dumps(drawn, indent=2, ensure_ascii=False) + "\n")
    elif arguments.output == Path("-"):
        sys.stdout.write(text(drawn))
    else:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text(drawn))
        sys.stderr.write(f"{arguments.output}: {len(drawn['channels'])} channels, {len(drawn['components']['messages'])} messages\n")
    return 0
