"""What the documents say of the code, and what the code owes its readers."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_layering import CONFINED, LEVELS, ROOT, modules

from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.data_tools.formats.input_format import Wanted
from deltalm_ds.evaluation.metrics.interface import References

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
    paths += [path for name in ("recipes", "ds_configs") for path in (ROOT / name).rglob("*.*")]
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
        is_kernel = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
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
    row = re.compile(r"^\| .+? \| \[`(.+?)`\]\(.+?\) \| `(\w+)` \| `(.+?)` \|", re.MULTILINE)
    rows = row.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    assert len(rows) >= 10
    for path, table, tests in rows:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^{table}\b.* = ", source, re.MULTILINE), f"{path}: {table}"
        assert (ROOT / tests).is_dir()


def test_every_path_that_the_guides_name_is_there() -> None:
    """In backticks, with a folder in front and in small letters: `kernels/table.py`; or in the package."""
    for document in (ARCHITECTURE, CONTRIBUTING):
        named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", document.read_text(encoding="utf-8"))
        paths = [name for name in named if name == name.lower() and "scale" not in name]  # an op of an example
        assert [path for path in paths if not any((ROOT / base / path).exists() for base in ("", "deltalm_ds"))] == []


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """What the examples of CONTRIBUTING.md define that are whole, run among the names of files like theirs."""
    siblings = ("recipe.schedules.cosine", "data.objectives.seq2seq", "data.sampling.temperature", "lines")
    siblings += ("data.sampling.base", "data_tools.formats.rows", "data_tools.formats.tsv", "data_tools.published.xqg")
    siblings += ("evaluation.metrics.interface", "generation.documents.passages")
    names: dict[str, Any] = {"eq": operator.eq}
    for sibling in siblings:
        names |= vars(import_module(f"deltalm_ds.{sibling}"))
    defined: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL):
        found = re.search(r"^class (\w+)|^def (read|scorer)\((\w+)", block, re.MULTILINE)
        if found:
            own = dict(names)
            exec(block, own)
            if found[1]:
                defined[found[1]] = own[found[1]]
            else:
                defined[f"{found[2]}_{found[3]}"] = own[found[2]]
            if "METRIC" in own:
                defined["METRIC"] = own["METRIC"]
    return defined


def test_the_examples_of_recipe_and_data_work(example: dict[str, Any]) -> None:
    rate = example["Halving"](peak_lr=0.5, warmup_steps=2, half_life=7).learning_rate
    assert [rate(done, 10) for done in (0, 1, 2, 9)] == [0, 0.25, 0.5, 0.25]
    shares = example["UniformSampling"]().shares(np.array([1, 3, 5]))(np.arange(2))
    assert shares.tolist() == [[1 / 3] * 3] * 2
    objective, raw = example["Copying"](), np.array([[0, 4, 9]])
    assert objective.fit(raw, Limits(6, 8), 0).tolist() == [[0, 4, 5]]
    assert objective.usable(raw).tolist() == [False, True, True]
    assert [lengths.tolist() for lengths in objective.lengths(raw, np.zeros(3))] == [[1, 5, 10]] * 2


def test_the_examples_of_reading_and_scoring_work(example: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "text.bars"
    path.write_text("Good day. | Guten Tag.\nYes. | Ja.\n", encoding="utf-8")
    columns = [list(column) for part in example["read_wanted"](Wanted(path, 2)) for column in part]
    assert columns == [["Good day."], ["Guten Tag."], ["Yes."], ["Ja."]]
    path.write_text("a ||| b\n", encoding="utf-8")
    assert list(example["read_files"]([path], Counter())) == [("a", ["b"])]
    document = example["read_text"]("# no text\ngreeting = Good day.\n")
    assert [passage.text for passage in document.passages] == ["", "Good day. "]
    assert example["METRIC"].scorer(References(["a", "b", "c", "d"])).score(["a", "b", "c", "x"]).value == 75
