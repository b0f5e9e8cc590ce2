"""The wheel contains the packages with their data, and neither benchmarks, examples nor training; their commands explain where they run."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ops.docgen.generate import ROOT
from ops.local.tiny_models import CHECKPOINTS

PACKAGES = ("contracts", "bus", "actors", "gateway", "ops")
CHECKOUT_ONLY = ("benchmarks", "examples", "training", "tests")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, because a build leaves files behind in its source folder."""
    source = tmp_path_factory.mktemp("source")
    for folder in (*PACKAGES, *CHECKOUT_ONLY):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", "."]
    result = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, as in site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def files_of(*folders: str) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def run_atelier(installed: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "ops.cli", *arguments]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)


def test_wheel_has_all_modules_and_data_files_of_the_packages(wheel: Path) -> None:
    packaged_files = set(zipfile.ZipFile(wheel).namelist())
    suffixes = (".py", ".sql", ".ttf", ".html", ".css", ".js", ".svg")
    assert {name for name in files_of(*PACKAGES) if name.endswith(suffixes)} <= packaged_files
    assert files_of(str(CHECKPOINTS.relative_to(ROOT)), "gateway/console/catalogues") <= packaged_files
    assert "gateway/docs/asyncapi.yaml" in packaged_files


def test_wheel_has_neither_benchmarks_nor_training(wheel: Path) -> None:
    folders = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("arguments", [("bench",), ("bench", "bus", "--json"), ("bench", "--help"), ("models", "train-tiny")])
def test_checkout_command_of_installed_package_names_remedy(installed: Path, arguments: tuple[str, ...]) -> None:
    result = run_atelier(installed, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Run it in a checkout" in result.stderr
    assert "make venv" in result.stderr
    assert "Traceback" not in result.stderr


def test_other_commands_of_installed_package_run(installed: Path) -> None:
    assert run_atelier(installed, "topology").returncode == 0


@pytest.mark.parametrize("arguments", [("bench", "--help"), ("bench", "bus", "--help"), ("models", "train-tiny", "--help")])
def test_checkout_commands_of_editable_install_run_in_any_folder(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """As with `.venv/bin/atelier`, which has the installed packages on its path, and not the checkout."""
    code = f"import sys; sys.path = [path for path in sys.path if path != {str(ROOT)!r}]; from ops.cli import main; sys.exit(main())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--json" in result.stdout or "BENCH" in result.stdout
