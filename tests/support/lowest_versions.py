"""The lowest versions that pyproject.toml allows, as constraints for pip: `python -m tests.support.lowest_versions > lowest.txt`.

The Makefile's target `test-lowest` installs them and runs the tests with them. The test tools keep the versions of constraints.txt.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TOOL = re.compile(r"(?:pytest|hypothesis|pluggy)[a-z-]*==.*")
FLOOR = re.compile(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?>=([0-9.]+)(?:,<[0-9.]+)?")


def lowest_versions(pyproject: str) -> Iterator[str]:
    """`name==version` for each dependency. Raises ValueError for one without a lowest version."""
    for requirement in tomllib.loads(pyproject)["project"]["dependencies"]:
        floor = FLOOR.fullmatch(requirement)
        if floor is None:
            raise ValueError(f"{requirement!r} names no lowest version: write name>=version")
        yield f"{floor[1]}=={floor[2]}"


if __name__ == "__main__":
    tools = filter(TOOL.fullmatch, (REPOSITORY / "constraints.txt").read_text().splitlines())
    sys.stdout.writelines(f"{line}\n" for line in (*lowest_versions((REPOSITORY / "pyproject.toml").read_text()), *tools))
