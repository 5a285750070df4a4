"""docs/troubleshooting.md beside the code: each message of training and runs has a row, and what a row quotes is said.

Both sides are cut into clauses: the words between punctuation, numbers, and what is filled in (`{run}` in the code,
`<run>` or `…` in the document). A message has its row if that quotes its first clause of four words or more or, where
it has none so long, all of it. Looked at are the texts in functions; what stands in tables and class bodies is at most
a part of a message. What pydantic tells of the recipe's schema and the schedules is left to the tests of recipes.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from test_layering import ROOT, modules

DOCUMENT = ROOT / "docs" / "troubleshooting.md"
TELLING = ("deltalm_ds/training/", "deltalm_ds/runs/", "deltalm_ds/recipe/", "launch/")
SCHEMA = ("deltalm_ds/recipe/schema.py", "deltalm_ds/recipe/training_section.py", "deltalm_ds/recipe/schedules/")
# What `deltalm launch --check` finds has its next step beside it.
CHECKS = (
    "launch/preflight/findings.py",
    "launch/preflight/gpu_checks.py",
    "launch/preflight/host_checks.py",
    "launch/preflight/network_checks.py",
    "launch/preflight/probe",
)
LEFT_OUT = (*SCHEMA, *CHECKS, "deltalm_ds/recipe/reference.py")
SAY = {"InputError", "DataError", "CheckError", "print", "_say", "say"}  # what they are given is told, however short
DISTINCTIVE = 4  # words
HOLE = "\0"
# no complaint: what every start says that goes on, and a part of docs/recipe.md
NO_COMPLAINT = {"going on from step", "meeting at", "Its name alone may stand for the section"}
OF_OTHERS = {  # what libraries and the system say
    "Connection closed by peer",
    "No space left on device",
    "The hostname of the client socket cannot be retrieved",
}
CUT = re.compile(rf"[{HOLE}…;,()\[\]\n|]|[.:?!](?=\W|$)|(?<![\w.-])\d+\b(?![.\w])")


class Text(NamedTuple):
    """A string of the code in clauses, with its line; `is_said` if it is given to one of `SAY`."""

    line: int
    clauses: list[str]
    is_said: bool


def clauses_of(text: str) -> list[str]:
    """Cut at holes, numbers and punctuation; quotes around words do not count."""
    words = (" ".join(piece.split()) for piece in CUT.split(re.sub(r"[`'\"]", "", text)))
    return [clause for clause in words if re.search("[a-z]", clause)]


def distinctive(clauses: Iterable[str]) -> list[str]:
    """Those long enough to know a message by."""
    return [clause for clause in clauses if len(clause.split()) >= DISTINCTIVE]


def template(node: ast.AST) -> str:
    """A string with holes where something is filled in; empty for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) or HOLE for value in node.values)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return re.sub(r"\{\w*\}", HOLE, node.value) if is_text else ""


def texts_of(source: str) -> Iterator[Text]:
    """The strings in the functions of a module; docstrings, and what is asserted, are none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from _texts_in(statement, is_said=False)


def _texts_in(node: ast.AST, is_said: bool) -> Iterator[Text]:
    if text := template(node):
        yield Text(node.lineno, clauses_of(text), is_said)
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if is_docstring or isinstance(node, ast.Assert | ast.FunctionDef):  # a function in it is looked at by itself
        return
    says = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in SAY
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):  # a part of it, seen above
            yield from _texts_in(child, says)


def rows_of(document: str) -> dict[str, list[str]]:
    """The clauses of all that a row quotes in its first cell, by that cell."""
    cells = re.findall(r"^\| (.+?) \| .+ \|$", document, re.MULTILINE)
    quotes = {cell: re.findall("`(.+?)`", re.sub("<[^<>]*>", HOLE, cell)) for cell in cells}
    return {cell: [clause for quote in quoted for clause in clauses_of(quote)] for cell, quoted in quotes.items()}


def needed(text: Text) -> list[str]:
    """The clauses that one row must quote; none if the text is no message by itself."""
    if long := distinctive(text.clauses):
        return long[:1]
    is_message = text.is_said and sum(len(clause.split()) for clause in text.clauses) > 1
    return text.clauses if is_message else []


def without_row(source: str, document: str) -> list[str]:
    """The messages of a module that no row quotes, each with its line."""
    rows = ["\n".join(clauses) for clauses in rows_of(document).values()]
    return [
        f"line {text.line}: no row of docs/troubleshooting.md quotes: {' … '.join(needed(text))}"
        for text in texts_of(source)
        if NO_COMPLAINT.isdisjoint(text.clauses)
        and not any(all(clause in row for clause in needed(text)) for row in rows)
    ]


def not_said(document: str, sources: Iterable[str]) -> list[str]:
    """The distinctive clauses that rows quote and no string of the sources has."""
    strings = (template(node) for source in sources for node in ast.walk(ast.parse(source)))
    said = "\n".join(clause for string in strings if " " in string for clause in clauses_of(string))
    quoted = {clause: cell for cell, clauses in rows_of(document).items() for clause in distinctive(clauses)}
    return [
        f"{cell[:60]}: nothing says: {clause}"
        for clause, cell in quoted.items()
        if clause not in said and clause not in OF_OTHERS
    ]


def told() -> list[Path]:
    """The modules whose messages have rows."""
    return [path for path in modules() if str(path).startswith(TELLING) and not str(path).startswith(LEFT_OUT)]


def read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", told(), ids=str)
def test_every_message_has_a_row(path: Path) -> None:
    assert without_row(read(path), read(DOCUMENT)) == []


def test_every_row_quotes_what_is_said() -> None:
    sources = [read(path) for path in modules() if path.parts[0] not in ("tests", "benchmarks")]
    assert not_said(read(DOCUMENT), sources) == []


def test_no_row_stands_twice() -> None:
    cells = re.findall(r"^\| (?!Seen)([^-].+?) \| .+ \|$", read(DOCUMENT), re.MULTILINE)
    assert [cell for cell, count in Counter(cells).items() if count > 1] == []


MESSAGES = '''
def load(path, told):
    """A docstring that is no message."""
    if not path:
        raise InputError(f"{path} is empty: name one that holds something, as in {told}.")
    for fault in told:
        yield f"line {fault}: there is no such key here"
    print(f"{path}: all lost: {told}", file=sys.stderr)
    return DataError(f"{told}: {path}") or f"{path}/x"
'''


def test_a_message_without_a_row_is_found() -> None:
    rows = ["| `<f> is empty: name one that holds something` | w | h |", "| `<f>: all lost` | w | h |"]
    rows.append("| At a start: `line <n>: there is no such key here` | w | h |")
    assert without_row(MESSAGES, "\n".join(rows)) == []
    lines = (5, 8, 7)
    for number, line in enumerate(lines):
        others = "\n".join(rows[:number] + rows[number + 1 :])
        assert [fault.split(":")[0] for fault in without_row(MESSAGES, others)] == [f"line {line}"]
    changed = MESSAGES.replace("name one that holds something", "name one that is full").replace("lost", "gone")
    assert len(without_row(changed, "\n".join(rows))) == 2


def test_a_row_of_what_nobody_says_is_found() -> None:
    row = "| `<key>: there is no such key here`, `line 3: there is no such key <there>` | w | h |"
    assert not_said(row, [MESSAGES]) == []
    assert len(not_said(row.replace("no such key here", "no such key below"), [MESSAGES])) == 1
