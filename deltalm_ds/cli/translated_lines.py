"""Lines of text through a model, and what `deltalm translate` prints of them."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltalm_ds.cli.output import print_json
from deltalm_ds.generation.documents.protected import pattern_of
from deltalm_ds.languages import check_code
from deltalm_ds.lines import STDIN, read_lines
from deltalm_ds.streams import say
from deltalm_ds.token_ids import UNK_ID

if TYPE_CHECKING:
    from deltalm_ds.generation.alignment import Alignment
    from deltalm_ds.generation.choosing import Output, Wishes
    from deltalm_ds.generation.interface import Engine, ModelVocabulary, SearchOptions
    from deltalm_ds.generation.line_translator import LineTranslator


class Shown(NamedTuple):
    """What is printed of outputs. alignments: one of `UNITS`, or None."""

    ids: bool
    as_json: bool
    check: bool
    alignments: str | None


def translate_lines(
    model: Path,
    input: Path,
    languages: tuple[str | None, str | None],
    prefix: str,
    options: "SearchOptions",
    wishes: "Wishes",
    protect: str | None,
    runs_on: dict[str, Any],
    shown: Shown,
) -> None:
    """Translate a file or standard input line by line, and print each translation when it is done.

    Args:
        model: a model directory or an export.
        input: text, or ids if these are shown.
        languages: to translate into, where the vocabulary has tags, and of the lines, where that is known or must be.
        prefix: what every output begins with.
        options: of the search.
        wishes: what is asked of outputs besides.
        protect: names from `PATTERNS`, with commas between; None protects nothing.
        runs_on: engine, device, dtype and threads, as `load_engine` takes them.
        shown: what is printed.
    """
    from deltalm_ds.generation.alignment import check_unit
    from deltalm_ds.generation.line_translator import LineTranslator
    from deltalm_ds.generation.loading import load_engine, load_vocabulary
    from deltalm_ds.generation.translate import encoder_for, parse_ids

    if shown.alignments:
        check_unit(shown.alignments)
    if languages[1] is not None:
        check_code(languages[1])
    protected = pattern_of(filter(None, protect.split(","))) if protect else None
    engine = load_engine(model, **runs_on)
    if shown.ids:
        size = engine.vocabulary_size
        options = replace(options, prefix=tuple(parse_ids(prefix, size)))
        numbers = LineTranslator(
            engine, lambda line: parse_ids(line, size), lambda ids: " ".join(map(str, ids)), options
        )
        _print_all(numbers, None, input, options, shown)
        return
    vocabulary = load_vocabulary(model)
    if prefix:
        options = replace(options, prefix=tuple(vocabulary.encode_output(prefix).tolist()))
    encode = encoder_for(vocabulary, *languages)
    translator = LineTranslator(engine, encode, vocabulary.decode, options)
    if wishes or protected:
        translator.choose(vocabulary, wishes, protected)
    _print_all(translator, _Looker(engine, vocabulary, encode, shown, languages), input, options, shown)


class _Note(NamedTuple):
    """What is said of an output besides: what looks wrong, and what it looks at."""

    checks: list[str] | None = None
    alignment: "Alignment | None" = None


class _Looker:
    """Looks at outputs beside their lines.

    Args:
        engine: that made them.
        vocabulary: of its model.
        encode: line -> ids with the language tag.
        shown: what is asked for.
        languages: see `translate_lines`.
    """

    def __init__(
        self,
        engine: "Engine",
        vocabulary: "ModelVocabulary",
        encode: Callable[[str], Sequence[int]],
        shown: Shown,
        languages: tuple[str | None, str | None],
    ) -> None:
        from deltalm_ds.generation.alignment import with_units
        from deltalm_ds.vocabulary import Vocabulary

        self._engine, self._encode, self._shown, self._languages = engine, encode, shown, languages
        self._units = with_units(vocabulary) if shown.alignments else None
        self._unknown = UNK_ID if isinstance(vocabulary, Vocabulary) else -1  # theirs has another number

    def notes(self, lines: Sequence[str], outputs: "Sequence[Sequence[Output]]") -> list[list[_Note]]:
        """Of each line and output."""
        from deltalm_ds.generation.alignment import attention

        longest = self._engine.max_positions - 1
        pairs = [
            (line, self._encode(line)[:longest], output)
            for line, of_line in zip(lines, outputs, strict=True)
            for output in of_line
        ]
        weights: Sequence[Any] = [None] * len(pairs)
        if self._shown.alignments:
            weights = attention(self._engine, [ids for _, ids, _ in pairs], [one.hypothesis.ids for *_, one in pairs])
        found = iter([self._note(*pair, of_pair) for pair, of_pair in zip(pairs, weights, strict=True)])
        return [[next(found) for _ in of_line] for of_line in outputs]

    def _note(self, line: str, source: Sequence[int], output: "Output", weights: Any) -> _Note:
        from deltalm_ds.generation.alignment import alignment, uncovered
        from deltalm_ds.generation.checks import findings

        checks, found, unit, units, ids = None, None, self._shown.alignments, self._units, output.hypothesis.ids
        if self._shown.check:
            not_covered = uncovered(units, source, weights) if units else ()
            num_unknown = list(source).count(self._unknown)
            checks = findings(line, output.text, source, ids, not_covered, self._languages, num_unknown)
        if self._shown.as_json and units and unit:
            found = alignment(units, source, ids, weights, unit)
        return _Note(checks, found)


def _print_all(
    translator: "LineTranslator", looker: _Looker | None, input: Path, options: "SearchOptions", shown: Shown
) -> None:
    """The outputs of each line, when it and those that came with it are done, and at the end what went wrong."""
    from deltalm_ds.generation.translate import no_progress
    from deltalm_ds.progress import progress

    chunks, num_lines = _chunks(input)
    showing = nullcontext(no_progress) if num_lines is None else progress("translate", num_lines)
    number = num_wrong = num_faulty = 0
    with showing as advance:
        for lines, outputs in translator.translate(chunks, shown.as_json or options.n_best > 1, advance):
            looked = looker.notes(lines, outputs) if looker else [[_Note()] * len(of_line) for of_line in outputs]
            for line, of_line, notes in zip(lines, outputs, looked, strict=True):
                if shown.as_json:
                    print_json(_as_json(line, of_line, notes, shown))
                else:
                    _print_outputs(number if options.n_best > 1 else None, of_line)
                number += 1
                num_wrong += bool(notes[0].checks)
                num_faulty += bool(of_line[0].faults)
                if hints := [*of_line[0].faults, *(notes[0].checks or [])]:
                    say(f"line {number}: {'; '.join(hints)}", "translate")
            sys.stdout.flush()
    if shown.check:
        say(f"{num_wrong} of {number} outputs look wrong.", "translate")
    if num_faulty:
        say(f"{num_faulty} of {number} outputs lack what was asked for.", "translate")
    if translator.num_divided:
        what = f"{translator.num_divided} of {number} lines were translated in pieces, to copy what is protected"
        say(f"{what}.", "translate")


def _chunks(path: Path) -> tuple[Iterable[Sequence[str]], int | None]:
    """The lines to translate in chunks, and their number where it is known: not while they are being written."""
    from deltalm_ds.generation.live_input import is_live, live_lines
    from deltalm_ds.generation.translate import chunks_of

    if path == STDIN and is_live():
        return live_lines(), None
    lines = read_lines(path)
    return chunks_of(lines), len(lines)


def _print_outputs(number: int | None, outputs: "Sequence[Output]") -> None:
    """The text alone, or with a line's number number<TAB>score<TAB>text of each of its outputs."""
    for output in outputs:
        text = output.text
        if number is not None:
            score = output.hypothesis.score if output.rerank_score is None else output.rerank_score
            text = f"{number}\t{score:.6f}\t{text.replace(chr(9), ' ')}"
        print(text)


def _as_json(line: str, outputs: "Sequence[Output]", notes: Sequence[_Note], shown: Shown) -> dict[str, Any]:
    """One object of --json: with --ids hypotheses have no text, and what is not asked for is not there."""
    hypotheses = []
    for output, note in zip(outputs, notes, strict=True):
        found: dict[str, Any] = ({} if shown.ids else {"text": output.text}) | asdict(output.hypothesis)
        if output.rerank_score is not None:
            found["rerank_score"] = output.rerank_score
        if output.faults:
            found["faults"] = list(output.faults)
        if note.checks is not None:
            found["checks"] = note.checks
        if note.alignment is not None:
            found["alignment"] = note.alignment.as_dict()
        hypotheses.append(found)
    return {"source": line, "hypotheses": hypotheses}
