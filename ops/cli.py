"""The command line `atelier`. Each command imports what it needs when it runs: `atelier run watermark` never meets torch."""

import json
import os
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from dotenv import load_dotenv

from ops import dead_letters
from ops.errors import SetupError

EXAMPLES = """\
examples:
  atelier demo --prompt "a fox in the snow" --count 2
  atelier up                       all parts and actors in the foreground, until Ctrl-C
  atelier run watermark upload     two actors in this process, with AMQP_URL, DATABASE_URL and STORE_URL
  atelier models tiny              small checkpoints with the real architectures
  atelier doctor --json            what is missing on this machine, and the cure
"""


def main(words: Sequence[str] | None = None) -> int:
    load_dotenv(Path.cwd() / ".env")
    arguments = parser().parse_args(words)
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
    up.set_defaults(call=later("ops.up", "up"))

    down = commands.add_parser("down", help="stop the local parts that a killed process left running")
    down.set_defaults(call=later("ops.up", "down"))

    gateway = commands.add_parser("gateway", help="the HTTP front door in this process, until SIGTERM or Ctrl-C")
    gateway.add_argument("--host", help="default: GATEWAY_HOST, else 127.0.0.1; any other needs API keys")
    gateway.add_argument("--port", type=int, help="default: GATEWAY_PORT, else 8080; 0 takes any free one")
    gateway.add_argument("--leash", action="store_true", help="leave when standard input closes, that is when the starter is gone")
    gateway.set_defaults(call=later("ops.gateway", "gateway"))

    demo = commands.add_parser("demo", help="one image order on real parts, from the queue to the webhook")
    demo.add_argument("--prompt", default="a red fox in fresh snow, watercolour")
    demo.add_argument("--artist", default="Atelier")
    demo.add_argument("--steps", type=int, default=20, help="denoising steps")
    demo.add_argument("--size", default="1:1", help="an aspect ratio such as 1:1 or 16:9, or pixels such as 512x512")
    demo.add_argument("--count", type=int, default=1, help="pictures, 1 to 4")
    demo.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    demo.set_defaults(call=later("ops.demo", "demo"))

    models = commands.add_parser("models", help="make or list model checkpoints")
    models.add_argument("what", choices=["tiny"], help="tiny: small checkpoints with the real architectures, made here")
    models.add_argument("--folder", type=Path, default=Path(".local/models"))
    models.add_argument("--force", action="store_true", help="make them again")
    models.set_defaults(call=make_models)

    doctor = commands.add_parser("doctor", help="what is missing on this machine, and the cure")
    doctor.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    doctor.set_defaults(call=later("ops.doctor", "doctor"))

    topology = commands.add_parser("topology", help="the exchanges and queues, and the policies that may be set on them")
    topology.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    topology.set_defaults(call=later("ops.topology", "topology"))

    dead_letters.add_to(commands)

    benches = commands.add_parser("bench", help="measure a part").add_subparsers(title="benches", required=True, metavar="BENCH")
    doors = benches.add_parser("gateway", help="requests and replies over HTTP, over the bus client and over bare aio-pika")
    doors.add_argument("--seconds", type=float, default=4.0, help="for each side and number of callers")
    doors.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64, 256])
    doors.add_argument("--waiting", type=int, default=1000, help="clients of the load run, each of which waits for a slow reply; 0: none")
    doors.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    doors.set_defaults(call=later("ops.bench.gateway", "bench"))
    seeing = benches.add_parser("vlm", help="questions about pictures in batches of 1, 4 and 8")
    seeing.add_argument("--model", help="a folder or a hub id; default: random weights, made for the bench")
    seeing.add_argument("--tokens", type=int, default=48, help="of each answer")
    seeing.add_argument("--rounds", type=int, default=3)
    seeing.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    seeing.set_defaults(call=later("ops.bench.vlm", "bench"))
    device = benches.add_parser("executor", help="the loop's lag, step batching against its rivals, cancel, how busy the device is")
    device.add_argument("--quick", action="store_true", help="small numbers, in seconds instead of minutes")
    device.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    device.set_defaults(call=later("ops.bench.executor", "bench"))
    gpu = benches.add_parser("gpu", help="pictures a second at the real sizes, with random weights")
    gpu.add_argument("--size", choices=["auto", "real", "tiny"], default="auto", help="auto: real where there is a GPU")
    gpu.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    gpu.set_defaults(call=later("ops.bench.gpu", "bench"))
    letters = benches.add_parser("dead-letters", help="dead letters taken in, grouped and sent again")
    letters.add_argument("--letters", type=int, default=10_000)
    letters.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    letters.set_defaults(call=later("ops.bench.dead_letters", "bench"))
    return top


def later(module: str, name: str) -> Callable[[Namespace], int]:
    """A command that is imported when it is called."""

    def call(arguments: Namespace) -> int:
        return int(getattr(import_module(module), name)(arguments))

    return call


def run_actors(arguments: Namespace) -> int:
    import asyncio

    from bus.logs import open_logs
    from bus.serve import serve
    from ops.workshop import hire

    open_logs()
    if arguments.leash:
        threading.Thread(target=leave_when_let_go, daemon=True).start()
    staff = hire(arguments.steps)
    asyncio.run(serve(staff.actors, staff.adapters, staff.intakes))
    return 0


def leave_when_let_go() -> None:
    """The starter holds the other end of standard input. When it dies, however it dies, this process leaves in order."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def make_models(arguments: Namespace) -> int:
    from ops.models import make_tiny

    made = make_tiny(arguments.folder.resolve(), force=arguments.force)
    sys.stdout.write(json.dumps({name: str(path) for name, path in made.items()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
