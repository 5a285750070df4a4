"""What the documents say of the code, and what the code owes its readers, read from the sources without running them."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_layering import CONFINED, LEVELS, ROOT, modules

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
ARCHITECTURE, CONTRIBUTING, FACTS = (
    ROOT / name for name in ("docs/architecture.md", "CONTRIBUTING.md", "docs/facts.md")
)
CITATION = re.compile(r"\[facts: ([^\]]+)\]")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FEW_ARGUMENTS = 3  # that a summary can explain


def texts() -> Iterator[tuple[Path, str]]:
    """Every text of the repository in which a fact may be cited, but this file."""
    paths = [ROOT / path for path in modules()] + DOCUMENTS
    paths += [path for name in ("recipes", "ds_configs") for path in (ROOT / name).iterdir()]
    for path in paths:
        if path != Path(__file__):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its classes, without dataclasses and whatever has an underscore in front."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def undescribed(source: str) -> list[str]:
    """The public functions of four or more arguments whose docstring does not describe them.

    A docstring may send its reader to where the same arguments are described: "see `kernels.attention`". Triton's
    kernels are left out: they describe their arguments group by group, in the signature.
    """
    found = []
    for function in public_functions(ast.parse(source)):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        is_kernel = any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
        is_described = re.search(r"^Args:|see `", ast.get_docstring(function) or "", re.MULTILINE) is not None
        if len(names) > FEW_ARGUMENTS and not is_kernel and not is_described:
            found.append(f"line {function.lineno}: {function.name}({', '.join(names)})")
    return found


def packaged_modules() -> list[Path]:
    """The modules that users import; the command line is documented by `--help`."""
    return [path for path in modules() if path.parts[0] not in ("tests", "benchmarks") and "cli" not in path.parts]


@pytest.mark.parametrize("path", packaged_modules(), ids=str)
def test_arguments_are_described(path: Path) -> None:
    assert undescribed((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for path in modules() if path.parts[0] != "tests"], ids=str)
def test_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


def test_undescribed_arguments_are_found() -> None:
    four = "(a, b, c, d):\n    '''Short.'''"
    assert undescribed(f"def f{four}") == ["line 1: f(a, b, c, d)"]
    assert undescribed("class A:\n    def f(self, a, b, *, c, d):\n        '''Short.'''") == ["line 2: f(a, b, c, d)"]
    assert undescribed(f"def _f{four}") == []
    assert undescribed("def f(a, b, c, d):\n    '''Short.\n\n    Args:\n        a: one.\n    '''") == []
    assert undescribed("class A:\n    def f(self, a, b, c): ...") == []


def test_every_cited_fact_is_there_and_every_fact_is_cited() -> None:
    headings = set(re.findall(r"^### (.+)$", FACTS.read_text(encoding="utf-8"), re.MULTILINE))
    cited = {name for path, text in texts() if ROOT / path != FACTS for name in CITATION.findall(text)}
    assert cited == headings


def test_nothing_cites_what_a_reader_cannot_open() -> None:
    assert [str(path) for path, text in texts() if re.search(r"\bFACTS\b", text)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(document.read_text(encoding="utf-8"))]
    files = [target for target in targets if target and "://" not in target]
    assert [target for target in files if not (document.parent / target).exists()] == []


def test_the_tour_has_the_levels_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(level) for level, _ in rows] == list(range(len(LEVELS)))
    assert [set(re.findall(r"`(\w+)`", names)) for _, names in rows] == [set(names) for names in LEVELS]


def test_the_tour_describes_every_folder() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    described = set(re.findall(r"^\*\*`(\w+)/`\*\*", text, re.MULTILINE))
    folders = {name for names in LEVELS for name in names if (ROOT / "deltalm_ds" / name).is_dir()}
    assert described >= folders
    assert [package for package in CONFINED if package not in text.lower()] == []


def test_the_hops_of_the_tour_are_in_the_code() -> None:
    """Each names a file and what is defined there: `deltalm_ds/recipe/loading.py` · `load_recipe`."""
    hops = re.findall(r"^\d\. \[`(.+?)`\].*? · `([\w.]+)`", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(hops) == 7
    for path, name in hops:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert all(re.search(rf"^ *(def|class) {part}\b", source, re.MULTILINE) for part in name.split(".")), name


def test_every_extension_point_has_its_table_where_the_checklist_says() -> None:
    rows = re.findall(
        r"^\| .+? \| \[`(.+?)`\]\(.+?\) \| `(\w+)` \|", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 10
    for path, table in rows:
        assert re.search(rf"^{table}\b.* = ", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{path}: {table}"
        )


def test_every_path_that_the_guides_name_is_there() -> None:
    """In backticks, with a folder in front: `kernels/table.py`. Placeholders have capitals or braces."""
    for document in (ARCHITECTURE, CONTRIBUTING):
        named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", document.read_text(encoding="utf-8"))
        paths = [name for name in named if name == name.lower()]
        assert [path for path in paths if not any((ROOT / base / path).exists() for base in ("", "deltalm_ds"))] == []
