"""What is packaged is what lies in the tree, under the one import name `fsim`."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "fsim": "fsim",
    "fsim.accel_models": "accel_models",
    "fsim.fault_models": "fault_models",
    "fsim.nas": "nas",
    "fsim.simulator": "simulator",
}
"""Import name -> folder of the tree."""


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def modules() -> dict[str, Path]:
    """Import name -> file of every module of the project's packages."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join((package, *parts))] = path
    return found


def listed_files() -> list[str]:
    """Tracked and new files of the packages, as paths in the checkout."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *FOLDERS.values()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def installed(name: str) -> str:
    """Where a file of the checkout lies in the wheel."""
    return name if name.startswith("fsim/") else f"fsim/{name}"


def test_the_packages_listed_are_those_of_the_tree():
    listed = setup_cfg()["options"]["packages"].split()
    assert sorted(listed) == sorted(
        name for name, path in modules().items() if path.name == "__init__.py"
    )


def test_every_folder_with_code_is_a_package():
    for path in modules().values():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_package_dir_maps_every_top_folder():
    lines = setup_cfg()["options"]["package_dir"].strip().splitlines()
    assert {tuple(part.strip() for part in line.split("=")) for line in lines} == set(
        FOLDERS.items()
    )


def test_package_data_matches_every_file_that_is_not_code():
    patterns = [
        f"{package.replace('.', '/')}/{pattern.strip()}"
        for package, value in setup_cfg()["options.package_data"].items()
        for pattern in value.split(",")
    ]
    for name in (installed(name) for name in listed_files() if not name.endswith(".py")):
        assert any(
            fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
        ), f"{name} is in no package_data of setup.cfg"


@pytest.mark.parametrize("folder", [*FOLDERS.values(), "bench", "tests"])
def test_no_file_imports_a_folder_by_its_bare_name(folder):
    bare = {name for name in FOLDERS.values() if name != "fsim"}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] not in bare, f"{path}:{node.lineno} imports {name}"


def test_the_wheel_holds_every_module_and_data_file_and_one_name(tmp_path):
    """Built from a copy, installed into an empty folder and imported from there."""
    source = tmp_path / "source"
    files = listed_files()
    for name in [*files, "setup.cfg", "pyproject.toml", "README.md"]:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    try:
        import setuptools  # noqa: F401

        isolation = ["--no-build-isolation"]
    except ImportError:
        isolation = []
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", *isolation, "-w", str(tmp_path / "wheel"), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {installed(name) for name in files}

    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        capture_output=True,
        text=True,
    )
    top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"fsim", "bin"}
    code = (
        "import sys, fsim; assert fsim.__file__.startswith(sys.argv[1]), fsim.__file__;"
        "from fsim.accel_models.load import list_accels, load_accel;"
        "print([len(load_accel(name).components) for name in list_accels()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
