"""The problems: a JSON list in a file, each with its examples and a solution in steps. Unknown fields are ignored."""

from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError


class Example(BaseModel):
    input: str
    output: str


class LogicStep(BaseModel):
    """One step of a solution. `socratic_hint` asks for the idea, `hint` names it."""

    goal: str
    socratic_hint: str = ""
    hint: str = ""


class Solution(BaseModel):
    solution_name: str = ""
    solution_code: str = ""
    logic_steps: list[LogicStep] = []


class Problem(BaseModel):
    problem_id: str
    title: str
    description: str
    input_description: str = ""
    output_description: str = ""
    examples: list[Example] = []
    solutions: list[Solution] = Field(min_length=1)


class ProblemError(Exception):
    """The file cannot be read, or has no such problem. The message names the cause."""


def load_problems(path: Path) -> dict[str, Problem]:
    """By id, in the order of the file. Raises ProblemError."""
    try:
        problems = TypeAdapter(list[Problem]).validate_json(path.read_bytes())
    except OSError as error:
        raise ProblemError(f"The problems cannot be read: {error}. DATA_FILE_PATH or --file names their file.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ProblemError(f"{path} is not a list of problems: {where}: {first['msg']}") from None
    return {problem.problem_id: problem for problem in problems}


def find_problem(problems: dict[str, Problem], problem_id: str) -> Problem:
    """Raises ProblemError with the ids that there are."""
    if problem_id not in problems:
        raise ProblemError(f"There is no problem {problem_id!r}; there are {', '.join(list(problems)[:20]) or 'none'}.")
    return problems[problem_id]
