"""The command line of the hint application."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from openai import APIConnectionError, OpenAI, OpenAIError

from examples.hints.guard import InputRefused
from examples.hints.hints import LEVELS, HintSession
from examples.hints.problems import ProblemError, find_problem, load_problems
from examples.hints.settings import HintSettings

EXAMPLE = """\
example:
  python -m examples.hints --problem sum-of-digits --level advanced --code "n = input()"

Other variables of the environment: OPENAI_API_KEY (a key of the server), VLLM_MODEL, DEFAULT_TEMPERATURE.
"""


def parse(argv: Sequence[str] | None, settings: HintSettings) -> Namespace:
    parser = ArgumentParser("python -m examples.hints", description="A hint for a program.", epilog=EXAMPLE,
                            formatter_class=RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--problem", metavar="ID", help="without it the problems are listed")
    parser.add_argument("--level", choices=LEVELS, default=LEVELS[0], help="how much the hint says; default: novice, the most")
    parser.add_argument("--code", default="-", help="the learner's program; @FILE reads a file, - (the default) standard input")
    parser.add_argument("--url", default=settings.url, help="of an OpenAI-compatible server; default: VLLM_SERVER_URL, else %(default)s")
    parser.add_argument("--file", type=Path, default=settings.problems, help="of the problems; default: DATA_FILE_PATH, else our own")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 with the cause and its cure on standard error."""
    try:
        settings = HintSettings.from_environment()
        arguments = parse(argv, settings)
        problems = load_problems(arguments.file)
        if arguments.problem is None:
            sys.stdout.writelines(f"{problem.problem_id}  {problem.title}\n" for problem in problems.values())
            return 0
        problem = find_problem(problems, arguments.problem)
        with OpenAI(base_url=arguments.url, api_key=settings.api_key, timeout=60, max_retries=3) as client:
            hint = HintSession(client, problem, settings.model, settings.temperature).hint(arguments.level, read_code(arguments.code))
    except InputRefused as error:
        return fail(f"The program is refused: {error}.")
    except APIConnectionError as error:
        return fail(f"The model server at {arguments.url} does not answer ({error.__cause__ or error}). Start it, or name it with --url.")
    except OpenAIError as error:
        return fail(f"The model server at {arguments.url} answers: {error}")
    except (ProblemError, LookupError, OSError, ValueError) as error:
        return fail(str(error))
    for warning in () if arguments.json else hint.warnings:
        sys.stderr.write(f"note: {warning}\n")
    sys.stdout.write((json.dumps(asdict(hint), ensure_ascii=False, indent=2) if arguments.json else hint.hint) + "\n")
    return 0


def read_code(argument: str) -> str:
    """Raises OSError and UnicodeDecodeError."""
    if argument == "-":
        return sys.stdin.read()
    return Path(argument[1:]).read_text(encoding="utf-8") if argument.startswith("@") else argument


def fail(message: str) -> int:
    sys.stderr.write(f"hints: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
