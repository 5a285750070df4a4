"""Who may import whom, read from the source of every module without running it."""

import ast
import runpy
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parent.parent
LINKED = ("kernels", "data_tools", "launch")
FOLDERS = ("deltalm_ds", *LINKED, "tests", "benchmarks")

# Packages that few folders may import: the folder names are those below deltalm_ds.
CONFINED = {
    "deepspeed": {"training", "launch"},
    "triton": {"kernels"},
    "apex": {"kernels"},
    "transformers": {"checkpoints", "export", "generation"},
}
# The folders and modules of deltalm_ds from the ground up: each imports lower levels only, lazily or not.
LEVELS = (
    {"errors", "allocator", "progress", "arrays", "token_ids", "threads", "streams"},
    {"files", "lines", "kernels", "processor", "languages", "devices"},
    {"model", "runs", "machine"},
    {"vocabulary", "report", "linear_choice"},
    {"checkpoints", "data", "environment"},
    {"generation", "data_tools"},
    {"evaluation", "export"},
    {"recipe", "serving"},
    {"training"},
    {"launch"},
    {"demo"},
    {"cli"},
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
LEVEL_OF["__init__"] = len(LEVELS)  # of the package: what users import from it, lazily
# All that these folders may import besides the standard library and themselves.
ALLOWED = {
    "arrays": {"numpy"},
    "kernels": {"torch", "triton", "apex", "deltalm_ds.errors"},
    "model": {"torch", "pydantic", "deltalm_ds.kernels", "deltalm_ds.errors", "deltalm_ds.token_ids"},
}
# Copied into exports, where transformers loads it: it imports as transformers wants it.
SHIPPED = ROOT / "deltalm_ds" / "export" / "hugging_face_files"
# Import name -> distribution, where they differ; pydantic pins and re-exports its own core.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "pydantic_core": "pydantic",
    "ClusterShell": "clustershell",
    "pynvml": "nvidia-ml-py",
    "docx": "python-docx",
    "rouge_score": "rouge-score",
    "prometheus_client": "prometheus-client",
}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and whether importing the file imports it."""

    module: str
    line: int
    eager: bool


def imports_of(source: str) -> list[Import]:
    """Every import of a module's source; `from p import m` counts as `p.m` too, as m may be a module."""
    return list(_walk(ast.parse(source), eager=True))


def _walk(node: ast.AST, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = "." * child.level + (child.module or "")
            yield from (Import(f"{package}.{alias.name}", child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(child, eager=False)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _walk(child, eager and not is_function)


def violations(folder: str, source: str) -> list[str]:
    """What a module of `folder` (`model`, `kernels`, …; `tests` for code outside the package) imports and may not."""
    found = []
    for entry in imports_of(source):
        parts = entry.module.split(".")
        inside = parts[1] if parts[0] == "deltalm_ds" and len(parts) > 1 else None
        reasons = {
            "imports must be absolute": parts[0] == "",
            f"import deltalm_ds.{parts[0]}, not the bare name": parts[0] in (*LINKED, "ds_configs", "recipes"),
        }
        if folder != "tests":
            reasons[f"{parts[0]} belongs to {CONFINED.get(parts[0])}"] = folder not in CONFINED.get(parts[0], {folder})
            reasons["transformers must be imported inside a function"] = parts[0] == "transformers" and entry.eager
            reasons[f"deltalm_ds.{inside} is not below {folder}"] = not _is_below(inside, folder)
            reasons[f"{folder} may not import it"] = not _is_allowed(folder, parts)
        found += [f"line {entry.line}: {entry.module}: {reason}" for reason, holds in reasons.items() if holds]
    return found


def _is_below(inside: str | None, folder: str) -> bool:
    return inside in (None, "__version__", folder) or LEVEL_OF[inside] < LEVEL_OF[folder]


def _is_allowed(folder: str, parts: list[str]) -> bool:
    if folder not in ALLOWED or parts[0] in sys.stdlib_module_names:
        return True
    own = parts[:2] == ["deltalm_ds", folder]
    return own or parts[0] in ALLOWED[folder] or ".".join(parts[:2]) in ALLOWED[folder]


def modules() -> list[Path]:
    """Every Python file of the repository, by its real place, relative to the root."""
    paths = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    left_out = {SHIPPED, *(ROOT / "deltalm_ds" / name for name in LINKED)}
    return sorted(path.relative_to(ROOT) for path in paths if not left_out & set(path.parents))


def folder_of(path: Path) -> str:
    """`deltalm_ds/model/layers.py` -> `model`, `kernels/x.py` -> `kernels`, `deltalm_ds/files.py` -> `files`."""
    if path.parts[0] == "deltalm_ds":
        return path.parts[1].removesuffix(".py")
    return path.parts[0] if path.parts[0] in LINKED else "tests"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_module_keeps_the_layers(path: Path) -> None:
    assert violations(folder_of(path), (ROOT / path).read_text(encoding="utf-8")) == []


def test_every_folder_has_a_level() -> None:
    seen = {folder_of(path) for path in modules()} - {"tests"}
    assert seen == LEVEL_OF.keys()


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not in a folder either, nor lazily: following imports from any module ends."""
    names = {module_name(path): path for path in modules() if folder_of(path) != "tests"}
    imported = {name: _modules_imported(name, path, names) for name, path in names.items()}
    TopologicalSorter(imported).prepare()  # CycleError names the modules of a cycle


def module_name(path: Path) -> str:
    """`kernels/top_k.py` -> `deltalm_ds.kernels.top_k`, `deltalm_ds/data/__init__.py` -> `deltalm_ds.data`."""
    dotted = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return dotted if path.parts[0] == "deltalm_ds" else f"deltalm_ds.{dotted}"


def _modules_imported(name: str, path: Path, known: Collection[str]) -> set[str]:
    """`from p import m` is an import of the module p.m where there is one, else of p."""
    found = set()
    for entry in imports_of((ROOT / path).read_text(encoding="utf-8")):
        found |= {candidate for candidate in (entry.module, entry.module.rpartition(".")[0]) if candidate in known}
    # a package's __init__ that its own modules import would only say that they are in it
    return found - {name, "deltalm_ds"}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("kernels", "import numpy"),
        ("kernels", "from deltalm_ds.files import atomic_file"),
        ("training", "def f():\n    from apex.optimizers import FusedAdam"),
        ("model", "import deepspeed"),
        ("model", "from deltalm_ds.files import atomic_file"),
        ("model", "from deltalm_ds import files"),
        ("model", "from deltalm_ds.data.shards import ShardDataset"),
        ("data", "def f():\n    import deepspeed.comm"),
        ("training", "import triton.language as tl"),
        ("training", "from deltalm_ds.launch import local"),
        ("arrays", "import torch"),
        ("data", "def f():\n    from deltalm_ds.training.inputs import open_inputs"),
        ("generation", "if TYPE_CHECKING:\n    from deltalm_ds.evaluation import bleu"),
        ("checkpoints", "from deltalm_ds.data import shards"),
        ("data_tools", "from deltalm_ds.launch.local import default_ranks"),
        ("training", "from deltalm_ds.cli import app"),
        ("export", "from transformers import BartConfig"),
        ("export", "class A:\n    import transformers"),
        ("evaluation", "def f():\n    import transformers"),
        ("model", "from . import layers"),
        ("model", "from .layers import Encoder"),
        ("tests", "from kernels.attention import attention"),
        ("tests", "import launch"),
    ],
)
def test_a_breach_is_found(folder: str, source: str) -> None:
    assert len(violations(folder, source)) >= 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("kernels", "import math, torch\nimport triton.language as tl\nfrom deltalm_ds.kernels import attention"),
        ("model", "from deltalm_ds.kernels.attention import attention\nfrom deltalm_ds.model import cache"),
        ("cli", "def f():\n    from deltalm_ds.data_tools.build import build"),
        ("training", "import deepspeed"),
        ("export", "def f():\n    import transformers"),
        ("export", "if TYPE_CHECKING:\n    import transformers"),
        ("launch", "from deltalm_ds.data_tools.cldr import phrases"),
        ("tests", "import deepspeed, transformers\nfrom deltalm_ds.kernels import attention"),
    ],
)
def test_what_is_allowed_passes(folder: str, source: str) -> None:
    assert violations(folder, source) == []


def test_every_imported_package_is_declared_in_setup_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package imports must be installed with it, or by the extra whose name is the folder's."""
    described: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", described.update)
    runpy.run_path(str(ROOT / "setup.py"))
    extras = {name: _names(listed) for name, listed in described["extras_require"].items()}
    required = _names(described["install_requires"])
    optional = {"data_tools": extras["mpi"], "export": extras["export"], "checkpoints": extras["export"]}
    optional["serving"] = extras["serve"]
    optional["evaluation"] = extras["eval"]
    optional["training"] = extras["mpi"]  # where mpirun starts the ranks
    optional["generation"] = {"onnxruntime", "transformers"} | extras["documents"]  # the first two are of exports
    optional["kernels"] = {"triton", "apex"}  # one comes with torch's CUDA wheels, one is used where found
    for path in modules():
        folder = folder_of(path)
        declared = required | optional.get(folder, set())
        for entry in imports_of((ROOT / path).read_text(encoding="utf-8")):
            package = entry.module.split(".")[0]
            if folder == "tests" or package == "deltalm_ds" or package in sys.stdlib_module_names:
                continue
            assert DISTRIBUTIONS.get(package, package) in declared, f"{path}: line {entry.line}: {package}"


def _names(requirements: list[str]) -> set[str]:
    return {requirement.split("[")[0].split(">")[0].split("=")[0].strip().lower() for requirement in requirements}
