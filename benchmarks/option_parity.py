"""Every engine with every option of `deltalm translate`, beside PyTorch; and each batched beside one line at a time.

`python -m benchmarks.option_parity MODEL --lines F --target-lang de`: the model is exported to the other engines'
formats, and all translate the same lines. Outputs are equal if all that are asked for are, ids and texts, in order;
scores are those that the engine gives them. What glossary and bans ask for is taken from the lines themselves.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.recording import existing, keep, parser, report
from deltalm_ds.errors import InputError
from deltalm_ds.export.package import export
from deltalm_ds.generation.alignment import attention
from deltalm_ds.generation.checks import findings
from deltalm_ds.generation.choosing import Output, Wishes
from deltalm_ds.generation.documents.protected import pattern_of
from deltalm_ds.generation.glossary import Glossary
from deltalm_ds.generation.interface import Engine, Ids, SearchOptions
from deltalm_ds.generation.line_translator import LineTranslator
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.phrases import Phrase
from deltalm_ds.generation.rerank import reranker_of
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import encoder_for
from deltalm_ds.lines import read_lines
from deltalm_ds.vocabulary import Vocabulary

EXPORTS = ("ctranslate2", "onnx")
NUM_CHECK_SENTENCES = 20
NUM_TERMS = 5
WORD = re.compile(r"[^\W\d_]{4,}")


class Result(NamedTuple):
    """Of one line. outputs: what must be equal. numbers: what may differ by rounding."""

    outputs: Any
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """How lines are translated."""

    options: SearchOptions = field(default_factory=SearchOptions)
    wishes: Wishes = field(default_factory=Wishes)
    protected: re.Pattern[str] | None = None


class Parity:
    """The lines, and what is done with them. lines: sources. encode: of the target language."""

    def __init__(self, model: Path, lines: Sequence[str], target_lang: str | None) -> None:
        self.lines, self._vocabulary = lines, Vocabulary.load(model)
        self.encode = encoder_for(self._vocabulary, target_lang)
        self._outputs: list[Ids] = []

    def translate(self, case: Case, engine: Engine, chunks: Sequence[Sequence[str]]) -> list[list[Output]]:
        """The outputs of all lines of these chunks."""
        translator = LineTranslator(engine, self.encode, self._vocabulary.decode, case.options)
        if case.wishes or case.protected:
            translator.choose(self._vocabulary, case.wishes, case.protected)
        return [of_line for _, found in translator.translate(chunks, case.options.n_best > 1) for of_line in found]

    def cases(self, engine: Engine, source_lang: str | None, model: Path) -> "dict[str, Run]":
        """What is compared, by option. engine: whose outputs are scored and aligned."""
        best = [of_line[0] for of_line in self.translate(Case(), engine, [self.lines])]
        self._outputs = [one.hypothesis.ids for one in best]
        words = Counter(word for one in best for word in set(WORD.findall(one.text)))
        prefix = self._vocabulary.encode(words.most_common(1)[0][0]).tolist()
        banned = tuple(Phrase(word.lower()) for word, _ in words.most_common(NUM_TERMS))
        translated = {
            "beam 1": Case(SearchOptions(beam=1)),
            "beam 5": Case(),
            "beam 5, 5 best": Case(SearchOptions(n_best=5)),
            "length penalty 0.5": Case(SearchOptions(length_penalty=0.5)),
            "lengths 12 to 20": Case(SearchOptions(min_length=12, max_length=20)),
            "lengths 0.8 to 1.1 of the source's": Case(SearchOptions(min_length_ratio=0.8, max_length_ratio=1.1)),
            "no repeated 3-grams": Case(SearchOptions(no_repeat_ngram_size=3)),
            "prefix": Case(SearchOptions(prefix=tuple(prefix))),
            "temperature 1, 3 of them": Case(SearchOptions(temperature=1.0, n_best=3)),
            "temperature 0.7, top 20, 0.9": Case(SearchOptions(temperature=0.7, top_k=20, top_p=0.9)),
            "glossary": Case(wishes=Wishes(glossary=_glossary(self.lines, [one.text for one in best]))),
            "ban": Case(wishes=Wishes(banned=banned)),
            "protect numbers, URLs": Case(protected=pattern_of(["number", "url"])),
            "rerank mbr": Case(wishes=Wishes(reranker=reranker_of("mbr"))),
            "rerank coverage": Case(wishes=Wishes(reranker=reranker_of("coverage"))),
        }
        if source_lang:
            reranker = reranker_of("reverse", None, model, source_lang)
            translated["rerank reverse"] = Case(wishes=Wishes(reranker=reranker))
        runs: dict[str, Run] = {name: self._run_of(case) for name, case in translated.items()}
        return runs | {"check": self._checks, "score": self._scores, "alignments": self._alignments}

    def _run_of(self, case: Case) -> "Run":
        def run(engine: Engine, places: Sequence[Sequence[int]]) -> list[Result]:
            found = self.translate(case, engine, [[self.lines[i] for i in of_chunk] for of_chunk in places])
            return [
                Result([(one.text, one.hypothesis.ids) for one in of_line], tuple(map(_score, of_line)))
                for of_line in found
            ]

        return run

    def _checks(self, engine: Engine, places: Sequence[Sequence[int]]) -> list[Result]:
        found = self.translate(Case(), engine, [[self.lines[i] for i in of_chunk] for of_chunk in places])
        lines = [self.lines[i] for of_chunk in places for i in of_chunk]
        return [
            Result(findings(line, one.text, self.encode(line), one.hypothesis.ids), ())
            for line, (one, *_) in zip(lines, found, strict=True)
        ]

    def _scores(self, engine: Engine, places: Sequence[Sequence[int]]) -> list[Result]:
        found = [log_p for of_chunk in places for log_p in score(engine, *self._pairs(of_chunk))]
        return [Result(None, tuple(log_p)) for log_p in found]

    def _alignments(self, engine: Engine, places: Sequence[Sequence[int]]) -> list[Result]:
        found = [weights for of_chunk in places for weights in attention(engine, *self._pairs(of_chunk))]
        return [Result(None, tuple(weights.flatten().tolist())) for weights in found]

    def _pairs(self, places: Sequence[int]) -> tuple[list[Ids], list[Ids]]:
        return [self.encode(self.lines[i]) for i in places], [self._outputs[i] for i in places]


Run = Callable[[Engine, Sequence[Sequence[int]]], list[Result]]  # lines by their places, in chunks


def main() -> None:
    """Export, translate, compare."""
    options = parser(__doc__)
    options.add_argument("model", type=existing, help="a model directory")
    options.add_argument("--lines", type=existing, required=True, help="sentences, one a line")
    options.add_argument("--target-lang", help="where the vocabulary has tags")
    options.add_argument("--source-lang", help="where the model translates back as well: for --rerank reverse")
    options.add_argument("--num-lines", type=int, default=200, help="of the first that have text")
    arguments = options.parse_args()
    lines = [line for line in read_lines(arguments.lines) if line.strip()][: arguments.num_lines]
    parity = Parity(arguments.model, lines, arguments.target_lang)
    with tempfile.TemporaryDirectory() as temporary:
        engines = {"pytorch": load_engine(arguments.model, device="cpu")}
        for to in EXPORTS:
            out = Path(temporary, to)
            export(arguments.model, out, to, check_sources=[parity.encode(one) for one in lines[:NUM_CHECK_SENTENCES]])
            engines[to] = load_engine(out, device="cpu")
        rows = _rows(arguments, parity, engines)
    model = f"{arguments.model.resolve().parent.name}/{arguments.model.name}"
    title = f"Engines with every option, {model}, {len(lines)} lines of {arguments.lines.name}, float32"
    report(arguments, title, " ".join(["python -m benchmarks.option_parity", *sys.argv[1:]]), rows, [NOTE])


NOTE = (
    "Equal: lines with PyTorch's outputs, ids and texts, all that are asked for, in order. Differences: of the scores "
    "(of tokens; of weights) of lines with equal outputs. Alone: the lines in batches beside the lines one at a time, "
    "by the same engine; to the bit: outputs and all scores."
)


def _rows(arguments: argparse.Namespace, parity: Parity, engines: dict[str, Engine]) -> list[dict[str, Any]]:
    """A row for each option and engine."""
    rows = []
    everything = [list(range(len(parity.lines)))]
    one_by_one = [[i] for i in everything[0]]
    for option, run in parity.cases(engines["pytorch"], arguments.source_lang, arguments.model).items():
        ours: list[Result] = []
        for name, engine in engines.items():
            row: dict[str, Any] = {"option": option, "engine": name}
            try:
                found = run(engine, everything)
            except InputError:
                rows.append(keep(arguments, "option_parity", row | {"equal": "refused"}))
                continue
            ours = ours or found
            alone = run(engine, one_by_one)
            row["equal"], row["largest difference"] = _compared(found, ours)
            row["alone: equal"], row["alone: largest difference"] = _compared(found, alone)
            row["alone: to the bit"] = sum(a == b for a, b in zip(found, alone, strict=True))
            rows.append(keep(arguments, "option_parity", row))
    return rows


def _compared(ours: Sequence[Result], theirs: Sequence[Result]) -> tuple[int, float]:
    """In how many lines outputs are equal, and the largest difference of a number in these."""
    same = [(a.numbers, b.numbers) for a, b in zip(ours, theirs, strict=True) if a.outputs == b.outputs]
    return len(same), max((float(np.abs(np.subtract(a, b)).max()) for a, b in same if a), default=0.0)


def _score(output: Output) -> float:
    return output.hypothesis.score if output.rerank_score is None else output.rerank_score


def _glossary(lines: Sequence[str], outputs: Sequence[str]) -> Glossary:
    """The most frequent words of the lines, each with the word that goes with it second best, so that some are missing.

    How well is Dice's coefficient of the lines that have the one and the other.
    """
    sources, targets = ([set(WORD.findall(text)) for text in texts] for texts in (lines, outputs))
    num_source, num_target = (Counter(word for words in texts for word in words) for texts in (sources, targets))
    forms = {}
    for term, _ in num_source.most_common(NUM_TERMS):
        together = Counter(word for a, b in zip(sources, targets, strict=True) if term in a for word in b)
        best = sorted(together, key=lambda word: (-together[word] / (num_source[term] + num_target[word]), word))
        if len(best) > 1:
            forms[Phrase(term)] = Phrase(best[1])
    return Glossary(forms)


if __name__ == "__main__":
    main()
