"""The command line `atelier`. Each command imports what it needs when it runs, so `atelier run watermark` does not import torch."""

import gc
import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from dotenv import load_dotenv

from bus import empty_modules
from bus.masking import mask_standard_error, mask_text
from bus.observability.settings import remember_environment
from ops.checkout import checkout_command, import_from_checkout, is_in_checkout
from ops.commands import dead_letters
from ops.errors import SetupError, describe_start_error
from ops.supervisor import exit_with_parent

EXAMPLES = """\
examples:
  atelier demo --prompt "a red heart on a white background" --count 2
  atelier demo --ad                an advertisement: copy, picture, text overlay, verdicts
  atelier up                       the local services and all actors in the foreground, until Ctrl-C
  atelier run watermark upload     two actors in this process, with AMQP_URL, DATABASE_URL and STORE_URL
  atelier run vision               consult, validate and judge with one copy of their model
  atelier models tiny              small checkpoints with the real architectures, without a download
  atelier models pull org/name     a model from the hub, s3://, gs://, https:// or a folder
  atelier models check FOLDER      family, memory and fitting LoRAs of a model, before it is served
  atelier settings gateway         settings with default, unit and meaning
  atelier doctor --json            what is missing on this machine, and how to fix it
"""
JSON_HELP = "print one JSON document and nothing else"


def main(argv: Sequence[str] | None = None) -> int:
    load_dotenv(Path.cwd() / ".env")
    remember_environment()
    mask_standard_error()
    arguments = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM raises KeyboardInterrupt, so that it cleans up as Ctrl-C does
    try:
        return int(arguments.call(arguments))
    except SetupError as error:
        sys.stderr.write(f"atelier: {mask_text(str(error))}\n")
        return 1
    except Exception as error:
        if (message := describe_start_error(error)) is None:
            raise
        sys.stderr.write(f"atelier: {mask_text(message)}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> ArgumentParser:
    top = ArgumentParser("atelier", description=__doc__, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_run, add_up, add_gateway, add_demo, add_models, add_doctor, add_topology, add_usage, add_reference):
        add(commands)
    dead_letters.add_commands(commands)
    add_bench(commands)
    return top


def lazy_command(module: str, name: str) -> Callable[[Namespace], int]:
    """A command that is imported when it is called."""

    def call(arguments: Namespace) -> int:
        with collection_paused():
            command = getattr(import_module(module), name)
        return int(command(arguments))

    return call


@contextmanager
def collection_paused() -> Iterator[None]:
    """Inside the block nothing is collected: imports leave nothing to collect, and looking for it costs a tenth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="serve one or more steps in this process, until SIGTERM or Ctrl-C")
    run.add_argument("steps", nargs="+", metavar="STEP", help="such as watermark, the foreign queue image_generation, or the group vision")
    add_exit_with_parent(run)
    run.set_defaults(call=run_actors)


def add_up(commands: Any) -> None:
    up = commands.add_parser("up", help="the local services and all actors, until Ctrl-C")
    up.add_argument("steps", nargs="*", metavar="STEP", help="only these; default: all")
    up.set_defaults(call=lazy_command("ops.up", "up"))

    down = commands.add_parser("down", help="stop the local services that a killed process left running")
    down.set_defaults(call=lazy_command("ops.up", "down"))


def add_gateway(commands: Any) -> None:
    gateway = commands.add_parser("gateway", help="the HTTP gateway in this process, until SIGTERM or Ctrl-C")
    gateway.add_argument("--host", help="default: GATEWAY_HOST, else 127.0.0.1; any other needs API keys")
    gateway.add_argument("--port", type=int, help="default: GATEWAY_PORT, else 8080; 0 takes any free one")
    add_exit_with_parent(gateway)
    gateway.set_defaults(call=lazy_command("ops.commands.run_gateway", "run_gateway"))


def add_exit_with_parent(command: ArgumentParser) -> None:
    """`--leash` is the name that earlier releases used."""
    about = "exit when standard input closes, that is when the parent process has ended"
    command.add_argument("--exit-with-parent", "--leash", action="store_true", help=about)


def add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="one image order on real services, from the queue to the webhook")
    demo.add_argument("--prompt", default="a yellow star on a blue background")
    demo.add_argument("--ad", action="store_true", help="an advertisement: copy, picture, text overlay and verdicts")
    demo.add_argument("--artist", default="Atelier")
    demo.add_argument("--steps", type=int, default=20, help="denoising steps")
    demo.add_argument("--size", default="1:1", help="an aspect ratio such as 1:1 or 16:9, or pixels such as 512x512")
    demo.add_argument("--count", type=int, default=1, help="pictures, 1 to 4")
    demo.add_argument("--json", action="store_true", help=JSON_HELP)
    demo.set_defaults(call=lazy_command("ops.commands.demo", "demo"))


def add_models(commands: Any) -> None:
    models = commands.add_parser("models", help="make, fetch, check or list model checkpoints").add_subparsers(
        required=True, metavar="WHAT"
    )
    tiny = models.add_parser("tiny", help="small checkpoints with the real architectures, without a download")
    tiny.add_argument("--force", action="store_true", help="make them again")
    tiny.add_argument("--families", action="store_true", help="also one for each family of image and vision models, with random weights")
    tiny.set_defaults(call=lazy_command("ops.commands.models", "make_models"))
    pull = models.add_parser("pull", help="fetch a model; an interrupted download is resumed")
    pull.add_argument("source", help="org/name on the hub, s3://bucket/prefix, gs://bucket/prefix, https://host/file, or a folder")
    pull.add_argument("--name", help="of its folder; default: made from the source")
    pull.add_argument("--sha256", help="expected checksum of a file fetched over https")
    pull.set_defaults(call=lazy_command("ops.commands.models", "pull_model"))
    add_model_check(models)
    listed = models.add_parser("list", help="the models in the folder, and whether each is complete")
    listed.set_defaults(call=lazy_command("ops.commands.models", "list_models"))
    for command in (tiny, pull, listed):
        command.add_argument("--folder", type=Path, default=Path(".local/models"))
    for command in (pull, listed):
        command.add_argument("--json", action="store_true", help=JSON_HELP)
    add_train_tiny(models)


CHECK_EXAMPLES = """\
examples:
  atelier models check .local/models/painter
  atelier models check .local/models/painter --loras .local/loras --json

exit status: 0 when the checkpoint can be served and every LoRA file fits, 1 when not, or when --loras names a folder without LoRA
files; 2 for wrong arguments
"""


def user_path(text: str) -> Path:
    """Of an argument. A home that `~` names must be one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ArgumentTypeError(f"there is no home folder of the user that {text!r} names") from None


def lora_path(text: str) -> Path:
    path = user_path(text)
    if not (path.is_file() or path.is_dir()):
        raise ArgumentTypeError(f"{path} is neither a LoRA file nor a folder with LoRA files")
    return path


def add_model_check(models: Any) -> None:
    about = "what a model folder is, its memory and what fits it, before it is served"
    check = models.add_parser("check", help=about, description=about, epilog=CHECK_EXAMPLES, formatter_class=RawDescriptionHelpFormatter)
    check.add_argument(
        "model", type=user_path, metavar="FOLDER", help="an image model, a ControlNet or a language model; no weights are read"
    )
    check.add_argument(
        "--loras", type=lora_path, metavar="FOLDER", help="a folder with LoRA files, or one file: which of them fit the image model"
    )
    check.add_argument("--json", action="store_true", help=JSON_HELP)
    check.set_defaults(call=lazy_command("ops.commands.model_check", "check_model"))


def add_train_tiny(models: Any) -> None:
    train = models.add_parser("train-tiny", help="train the tiny models from scratch, or resume a training (in a checkout)")
    train.add_argument("models", nargs="*", metavar="MODEL", help="tiny-shapes or tiny-critic; default: all")
    train.add_argument("--share", type=float, default=1.0, help="share of the training steps, for a trial run; 1 for all of them")
    train.add_argument("--pictures", type=int, default=50, help="on which each row of a model card is measured")
    train.add_argument("--folder", type=Path, default=Path(".local/trained"))
    train.add_argument("--json", action="store_true", help=JSON_HELP)
    train.set_defaults(call=checkout_command("training.train_tiny", "train_tiny"))


def add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what is missing on this machine and among its services, and how to fix it")
    doctor.add_argument("steps", nargs="*", metavar="STEP", help="steps that must have a consumer; default: those whose queue has messages")
    doctor.add_argument("--services", action="store_true", help="only the services and model servers, not this machine")
    doctor.add_argument("--json", action="store_true", help=JSON_HELP)
    doctor.set_defaults(call=lazy_command("ops.commands.doctor", "doctor"))


def add_topology(commands: Any) -> None:
    topology = commands.add_parser("topology", help="the exchanges and queues, and the policies that may be set on them")
    topology.add_argument("--json", action="store_true", help=JSON_HELP)
    users = topology.add_argument_group("users of RabbitMQ")
    users.add_argument("--users", action="store_true", help="one user and permission set per role: publisher, actor, gateway, operator")
    users.add_argument("--apply", action="store_true", help="create or update them, with rabbitmqctl on this machine")
    users.add_argument("--management", metavar="URL", help="apply over the management plugin, as the user of AMQP_URL")
    users.add_argument("--foreign-queue", action="store_true", help="a publisher may use the default exchange, which reaches every queue")
    users.add_argument("--definitions", action="store_true", help="print the document that RabbitMQ imports, with hashes of the passwords")
    users.add_argument("--passwords", action="store_true", help="print the passwords and the URLs")
    topology.set_defaults(call=lazy_command("ops.commands.topology", "topology"))

    prepare = commands.add_parser("prepare", help="declare exchanges and queues, set policies, make the bucket; before the first actor")
    prepare.add_argument("--management", metavar="URL", help="of RabbitMQ's management plugin, to set policies; default: none are set")
    prepare.set_defaults(call=lazy_command("ops.commands.prepare", "prepare"))


def add_usage(commands: Any) -> None:
    usage = commands.add_parser("usage", help="busy time of the devices by tenant and step, from the ledger")
    usage.add_argument("--since", metavar="TIME", help="2026-01-31T12:00 (UTC), or an age: 90s, 15m, 2h, 30d")
    usage.add_argument("--tenant", help="only this tenant")
    usage.add_argument("--json", action="store_true", help=JSON_HELP)
    usage.set_defaults(call=lazy_command("ops.commands.usage", "usage_command"))


def add_reference(commands: Any) -> None:
    settings = commands.add_parser("settings", help="every setting with its default, unit and meaning")
    settings.add_argument("words", nargs="*", metavar="WORD", help="only settings whose name contains it")
    settings.add_argument("--json", action="store_true", help=JSON_HELP)
    settings.set_defaults(call=lazy_command("ops.commands.reference", "settings_command"))

    asyncapi = commands.add_parser("asyncapi", help="every message of the bus, as an AsyncAPI 3 document")
    asyncapi.add_argument("--output", type=Path, default=Path("docs/asyncapi.yaml"), help="where to write it; - prints it")
    asyncapi.add_argument("--json", action="store_true", help=JSON_HELP)
    asyncapi.set_defaults(call=lazy_command("ops.commands.reference", "asyncapi_command"))


def add_bench(commands: Any) -> None:
    """The benchmarks with their arguments; outside of a checkout a command that explains how to get them."""
    if is_in_checkout("benchmarks"):
        import_from_checkout("benchmarks.arguments").add_benches(commands, checkout_command)
        return
    bench = commands.add_parser("bench", help="benchmarks (in a checkout)", prefix_chars="\0", add_help=False)
    bench.add_argument("words", nargs="*")
    bench.set_defaults(call=checkout_command("benchmarks.arguments", "add_benches"))


def run_actors(arguments: Namespace) -> int:
    with collection_paused():
        if arguments.exit_with_parent:
            threading.Thread(target=exit_with_parent, daemon=True).start()
        components = load_worker(arguments.steps)
        gc.freeze()  # what was imported is never looked through again: that would hold up the event loop for 60 ms

    import asyncio

    from bus.worker.worker import serve

    asyncio.run(serve(components.actors, components.adapters, components.ingests))
    return 0


def load_worker(steps: list[str]) -> Any:
    """Import what a worker needs, and its components. Raises SetupError for an unknown step.

    Libraries get empty modules for what no process of this command runs: prometheus-client for its servers and pushes, FastStream for the
    server of its AsyncAPI pages. They take 1 MB.
    """
    with empty_modules("http.server", "urllib.request", "wsgiref.simple_server"):
        import prometheus_client  # noqa: F401
    with empty_modules("http.server"):
        import bus.worker.worker  # noqa: F401
    from bus.observability.logs import configure_logging
    from ops.registry import load_actors

    configure_logging()
    return load_actors(steps)


if __name__ == "__main__":
    sys.exit(main())
