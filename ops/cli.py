"""The command line `atelier`. Each command imports what it needs when it runs: `atelier run watermark` never meets torch."""

import signal
import sys
import threading
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from dotenv import load_dotenv

from benchmarks.arguments import add_benches
from ops.commands import dead_letters
from ops.errors import SetupError
from ops.supervisor import exit_with_parent

EXAMPLES = """\
examples:
  atelier demo --prompt "a red heart on a white background" --count 2
  atelier demo --ad                an advertisement: written, drawn, lettered, judged
  atelier up                       all parts and actors in the foreground, until Ctrl-C
  atelier run watermark upload     two actors in this process, with AMQP_URL, DATABASE_URL and STORE_URL
  atelier models tiny              small checkpoints with the real architectures, for a try without a download
  atelier models pull org/name     a model from the hub, s3://, gs://, https:// or a folder
  atelier settings gateway         what can be set, with defaults and units
  atelier doctor --json            what is missing on this machine, and the cure
"""


def main(argv: Sequence[str] | None = None) -> int:
    load_dotenv(Path.cwd() / ".env")
    arguments = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end cleans up as Ctrl-C does
    try:
        return int(arguments.call(arguments))
    except SetupError as error:
        sys.stderr.write(f"atelier: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> ArgumentParser:
    top = ArgumentParser("atelier", description=__doc__, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve one or more steps in this process, until SIGTERM or Ctrl-C")
    run.add_argument("steps", nargs="+", metavar="STEP", help="such as watermark, or the foreign queue image_generation")
    run.add_argument("--leash", action="store_true", help="leave when standard input closes, that is when the starter is gone")
    run.set_defaults(call=run_actors)

    up = commands.add_parser("up", help="the local parts and one process per actor, until Ctrl-C")
    up.add_argument("steps", nargs="*", metavar="STEP", help="only these; default: all")
    up.set_defaults(call=lazy_command("ops.up", "up"))

    down = commands.add_parser("down", help="stop the local parts that a killed process left running")
    down.set_defaults(call=lazy_command("ops.up", "down"))

    gateway = commands.add_parser("gateway", help="the HTTP front door in this process, until SIGTERM or Ctrl-C")
    gateway.add_argument("--host", help="default: GATEWAY_HOST, else 127.0.0.1; any other needs API keys")
    gateway.add_argument("--port", type=int, help="default: GATEWAY_PORT, else 8080; 0 takes any free one")
    gateway.add_argument("--leash", action="store_true", help="leave when standard input closes, that is when the starter is gone")
    gateway.set_defaults(call=lazy_command("ops.commands.run_gateway", "run_gateway"))

    demo = commands.add_parser("demo", help="one image order on real parts, from the queue to the webhook")
    demo.add_argument("--prompt", default="a yellow star on a blue background")
    demo.add_argument("--ad", action="store_true", help="an advertisement: written, drawn, looked at, lettered and judged")
    demo.add_argument("--artist", default="Atelier")
    demo.add_argument("--steps", type=int, default=20, help="denoising steps")
    demo.add_argument("--size", default="1:1", help="an aspect ratio such as 1:1 or 16:9, or pixels such as 512x512")
    demo.add_argument("--count", type=int, default=1, help="pictures, 1 to 4")
    demo.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    demo.set_defaults(call=lazy_command("ops.commands.demo", "demo"))

    models = commands.add_parser("models", help="make, fetch or list model checkpoints").add_subparsers(required=True, metavar="WHAT")
    tiny = models.add_parser("tiny", help="small checkpoints with the real architectures, made here")
    tiny.add_argument("--force", action="store_true", help="make them again")
    tiny.set_defaults(call=lazy_command("ops.commands.models", "make_models"))
    pull = models.add_parser("pull", help="fetch a model; goes on where an earlier try broke off")
    pull.add_argument("source", help="org/name on the hub, s3://bucket/prefix, gs://bucket/prefix, https://host/file, or a folder")
    pull.add_argument("--name", help="of its folder; default: made from the source")
    pull.add_argument("--sha256", help="of a file fetched over https; another one is refused")
    pull.set_defaults(call=lazy_command("ops.commands.models", "pull_model"))
    listed = models.add_parser("list", help="what lies in the models' folder, and whether it is whole")
    listed.set_defaults(call=lazy_command("ops.commands.models", "list_models"))
    taught = models.add_parser("train-tiny", help="train the tiny models from nothing; goes on where an earlier try was left")
    taught.add_argument("models", nargs="*", metavar="MODEL", help="tiny-shapes or tiny-critic; default: all")
    taught.add_argument("--share", type=float, default=1.0, help="of the training's steps, to try the way; 1 for all of them")
    taught.add_argument("--pictures", type=int, default=50, help="that each row of a model card is measured on")
    taught.set_defaults(call=lazy_command("training.train_tiny", "train_tiny"))
    for command in (tiny, pull, listed):
        command.add_argument("--folder", type=Path, default=Path(".local/models"))
    taught.add_argument("--folder", type=Path, default=Path(".local/trained"))
    for command in (pull, listed, taught):
        command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")

    doctor = commands.add_parser("doctor", help="what is missing on this machine and among its parts, and the cure")
    doctor.add_argument("steps", nargs="*", metavar="STEP", help="steps that must be served; default: those for which messages wait")
    doctor.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    doctor.set_defaults(call=lazy_command("ops.commands.doctor", "doctor"))

    topology = commands.add_parser("topology", help="the exchanges and queues, and the policies that may be set on them")
    topology.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    topology.set_defaults(call=lazy_command("ops.commands.topology", "topology"))

    prepare = commands.add_parser("prepare", help="declare exchanges and queues, set policies, make the bucket; before the first actor")
    prepare.add_argument("--management", metavar="URL", help="RabbitMQ's management plugin, to set policies; default: none are set")
    prepare.set_defaults(call=lazy_command("ops.commands.prepare", "prepare"))

    book = commands.add_parser("settings", help="every setting with its default, unit and meaning")
    book.add_argument("words", nargs="*", metavar="WORD", help="only settings whose name has this in it")
    book.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    book.set_defaults(call=lazy_command("ops.commands.reference", "settings_command"))

    asyncapi = commands.add_parser("asyncapi", help="what may be said on the bus, as an AsyncAPI 3 document")
    asyncapi.add_argument("--output", type=Path, default=Path("docs/asyncapi.yaml"), help="where to write it; - prints it")
    asyncapi.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    asyncapi.set_defaults(call=lazy_command("ops.commands.reference", "asyncapi_command"))

    dead_letters.add_commands(commands)

    add_benches(commands, lazy_command)
    return top


def lazy_command(module: str, name: str) -> Callable[[Namespace], int]:
    """A command that is imported when it is called."""

    def call(arguments: Namespace) -> int:
        return int(getattr(import_module(module), name)(arguments))

    return call


def run_actors(arguments: Namespace) -> int:
    import asyncio

    from bus.observability.logs import configure_logging
    from bus.worker.worker import serve
    from ops.registry import load_actors

    configure_logging()
    if arguments.leash:
        threading.Thread(target=exit_with_parent, daemon=True).start()
    staff = load_actors(arguments.steps)
    asyncio.run(serve(staff.actors, staff.adapters, staff.ingests))
    return 0


if __name__ == "__main__":
    sys.exit(main())
