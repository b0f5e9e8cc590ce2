"""The images install what was locked, by hash; actions of the workflows are pinned by commit."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ops.docgen.settings_catalog import ROOT

DOCKERFILES = sorted((ROOT / "ops/images").glob("*.Dockerfile"))
OUR_PACKAGE = "--no-deps --no-index --no-build-isolation ."
"""How a Dockerfile installs the checkout itself: nothing is fetched."""
NOT_IN_CONSTRAINTS = re.compile(r"nvidia-|cuda-|triton$|setuptools$")
"""The CUDA libraries of the GPU image, whose torch asks for exact versions, and the build of our package."""


def requirements(image: str) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirement and the hashes of each package."""
    text = (ROOT / "ops/images" / f"{image}.txt").read_text()
    entries = re.findall(r"^([^\s#][^\\#\n]*?) \\\n((?:    --hash=.+\n)+)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)), "an entry without a hash"
    parsed = [(Requirement(entry), re.findall(r"--hash=(sha256:[0-9a-f]{64})\b", hashes)) for entry, hashes in entries]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in parsed}


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2].split()[0].rstrip(";") for line in lines}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_installation_in_image_requires_hashes(path: object) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "ops/images" / str(path)).read_text())
    commands = re.findall(r"\bpip3? install ([^&;\n]+)", text)
    assert [command for command in commands if "--require-hashes" in command]
    assert [command for command in commands if "--require-hashes" not in command and command.strip() != OUR_PACKAGE] == []
    assert not re.search(r"\b(curl|wget|apt-get install|ADD http|npm|uv) ", text)


@pytest.mark.parametrize("image", [path.stem for path in DOCKERFILES])
def test_locked_versions_are_those_that_were_tested(image: str) -> None:
    """Each with hashes, and without the name of a server."""
    pinned, locked = constraints(), requirements(image)
    assert len(locked) > 50
    assert [name for name, (_, hashes) in locked.items() if not hashes] == []
    versions = {name: str(requirement.specifier) for name, (requirement, _) in locked.items() if not NOT_IN_CONSTRAINTS.match(name)}
    in_both = {name: version for name, version in versions.items() if name in pinned}
    assert {name: version for name, version in in_both.items() if version != f"=={pinned[name]}"} == {}
    missing = [name for name in versions if name not in pinned and not locked[name][0].marker]
    assert missing == [], "constraints.txt does not have them: install, freeze and run ops/images/lock.sh"
    assert "://" not in (ROOT / "ops/images" / f"{image}.txt").read_text()


@pytest.mark.parametrize(("image", "extras"), [("cpu", {"s3"}), ("gpu", {"s3", "models"})])
def test_lock_has_every_requirement_of_the_package(image: str, extras: set[str]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(entry for extra in extras for entry in project["optional-dependencies"][extra])]
    locked = requirements(image)
    for requirement in map(Requirement, wanted):
        version = str(locked[canonicalize_name(requirement.name)][0].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), requirement


def test_actions_are_pinned_by_commit() -> None:
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    uses = [use for path in workflows for use in re.findall(r"uses:\s*(.+)", path.read_text())]
    assert uses
    assert [use for use in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d[\d.]*", use)] == []
