"""The layout on which packaging, imports and documentation rest."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
LINKED = ("kernels", "data_tools", "launch", "ds_configs", "recipes")
CITATION = re.compile(r"\[([A-ZÉÖŠ][^\W\d_]+\+?\d{2})\b[^\]\n]*\]")


def run_setup(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tree's setup.py as a build tool does."""
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is packaged, links kept, to be built or damaged."""
    copy = tmp_path / "repository"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("deltalm_ds", *LINKED):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for path in ROOT.glob("constraints*.txt"):
        shutil.copy(path, copy)
    return copy


@pytest.mark.parametrize("name", LINKED)
def test_folder_is_real_and_the_package_links_to_it(name: str) -> None:
    assert (ROOT / name).is_dir() and not (ROOT / name).is_symlink()
    assert os.readlink(ROOT / "deltalm_ds" / name) == f"../{name}"


@pytest.mark.parametrize("name", LINKED)
def test_linked_folder_has_no_init(name: str) -> None:
    """With one, the folder would shadow a package of its name for everybody who has the root on sys.path."""
    assert list((ROOT / name).rglob("__init__.py")) == []


def test_transformers_imports_with_the_root_on_sys_path() -> None:
    """There `kernels` means our folder at most as a bare namespace, which transformers does not take for a package."""
    pytest.importorskip("transformers", reason="the extra export is not installed")
    code = (
        "from importlib.util import find_spec\n"
        "from transformers import BartForConditionalGeneration\n"
        "spec = find_spec('kernels')\n"
        "print(spec.origin if spec else None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert not process.stdout.startswith(str(ROOT))


@pytest.mark.parametrize("name", LINKED)
def test_setup_refuses_a_lost_link(tree: Path, name: str) -> None:
    link = tree / "deltalm_ds" / name
    link.unlink()
    link.write_text(f"../{name}")  # what git leaves where symbolic links are off
    process = run_setup(tree, "--version")
    assert process.returncode != 0
    assert f"deltalm_ds/{name} must be a symbolic link to ../{name}" in process.stderr


def packaged_files(tree: Path) -> set[str]:
    """What a wheel must hold: each module, configuration, recipe, script and example once, and the mark of types."""
    files: set[str] = set()
    for folder in ("deltalm_ds", *LINKED):
        prefix = "" if folder == "deltalm_ds" else "deltalm_ds/"
        for path in (tree / folder).rglob("*"):
            through_link = folder == "deltalm_ds" and path.relative_to(tree).parts[1] in LINKED
            is_data = path.name == "py.typed" or (path.is_file() and path.parent.name == "examples")
            if (path.suffix in {".py", ".json", ".yaml", ".sbatch", ".html"} or is_data) and not through_link:
                files.add(f"{prefix}{path.relative_to(tree)}")
    return files


def test_wheel_and_sdist_hold_everything_once(tree: Path) -> None:
    """The sdist as well as the repository gives the whole wheel."""
    expected = packaged_files(tree)
    some = {"deltalm_ds/kernels/attention.py", "deltalm_ds/ds_configs/fp32_zero1.json", "deltalm_ds/py.typed"}
    assert some <= expected
    process = run_setup(tree, "sdist", "bdist_wheel")
    assert process.returncode == 0, process.stderr
    assert files_of_wheel(next((tree / "dist").glob("*.whl"))) == expected

    shutil.unpack_archive(next((tree / "dist").glob("*.tar.gz")), tree / "unpacked")
    (unpacked,) = (tree / "unpacked").iterdir()
    top_level = {path.name for path in unpacked.iterdir()}
    assert {"deltalm_ds", "setup.py", "LICENSE", "CHANGELOG.md", "constraints.txt"} <= top_level
    assert not top_level & {*LINKED, "tests"}
    process = run_setup(unpacked, "bdist_wheel")
    assert process.returncode == 0, process.stderr
    assert files_of_wheel(next((unpacked / "dist").glob("*.whl"))) == expected


def files_of_wheel(path: Path) -> set[str]:
    """The wheel's content without its own metadata; every name is there once."""
    names = zipfile.ZipFile(path).namelist()
    assert len(names) == len(set(names))
    return {name for name in names if ".dist-info/" not in name}


def test_setup_imports_nothing_that_is_installed() -> None:
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"setuptools"}


def pinned_lines(name: str) -> list[str]:
    """Of a constraints file, one for each pin."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def pinned(name: str) -> dict[str, set[str]]:
    """Package -> the versions that a constraints file pins, of which markers choose one."""
    pins: dict[str, set[str]] = {}
    for line in pinned_lines(name):
        package, version = line.split(" ; ")[0].split("==")
        pins.setdefault(package, set()).add(version)
    return pins


def test_every_requirement_is_pinned() -> None:
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    lists = source[source.index("install_requires") : source.index("entry_points")]
    requirements = re.findall(r'"([A-Za-z][\w-]+)(?:\[[\w,]+\])?(?:>=[\d.]+)?"(?!:)', lists)
    assert {"torch", "deepspeed", "sacrebleu", "pytest", "mpi4py"} <= set(requirements)
    assert {name.lower() for name in requirements} - pinned("constraints.txt").keys() == set()


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_pin_allows_the_pythons_that_its_marker_takes(python: str) -> None:
    """As far as what is pinned is installed here."""
    refused = []
    for pin in map(Requirement, pinned_lines("constraints.txt")):
        with suppress(PackageNotFoundError):
            metadata = distribution(pin.name).metadata
            is_taken = pin.marker is None or pin.marker.evaluate({"python_version": python})
            if is_taken and metadata["Version"] in pin.specifier:
                allowed = SpecifierSet(metadata["Requires-Python"] or "")
                refused += [] if f"{python}.99" in allowed else [str(pin)]
    assert refused == []


def test_v100_has_another_build_of_the_same_torch() -> None:
    (torch,) = pinned("constraints-v100.txt")["torch"]
    assert torch.split("+")[0] in pinned("constraints.txt")["torch"]


def test_every_citation_is_in_the_references() -> None:
    known = set(re.findall(r"^- \*\*\[(.+?)\]\*\*", (ROOT / "docs/references.md").read_text(encoding="utf-8"), re.M))
    folders = ("deltalm_ds", *LINKED, "tests", "benchmarks", "docs")
    paths = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".yaml", ".md"}
    ]
    cited = {key for path in [*paths, ROOT / "README.md"] for key in CITATION.findall(path.read_text(encoding="utf-8"))}
    assert "Ma+21" in cited
    assert cited - known == set()
