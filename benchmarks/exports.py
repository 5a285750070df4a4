"""What every export gives, against our own search: `python -m benchmarks.exports MODEL --source F --reference F …`.

The model is exported to every format, whose engine then translates the test set: outputs equal to those of our
PyTorch search (greedy and beam 5), the largest error of a token's log-probability on our greedy outputs, and BLEU.
"""

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.recording import existing, parser, report
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScorer
from deltalm_ds.export.formats import load_format
from deltalm_ds.export.package import export
from deltalm_ds.generation.interface import Engine, Ids, SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import encoder_for, generate
from deltalm_ds.lines import read_lines
from deltalm_ds.vocabulary import Vocabulary

EXPORTS = (
    "ctranslate2:float32",
    "ctranslate2:int8",
    "huggingface:float32",
    "bart:float32",
    "onnx:float32",
    "onnx:int8",
)
NUM_CHECK_SENTENCES = 50
GREEDY, BEAM = SearchOptions(beam=1), SearchOptions(beam=5)

Outputs = list[tuple[int, ...]]


class Results(NamedTuple):
    """Of one engine on the test set: its outputs, and log p of each token of our greedy outputs."""

    greedy: Outputs
    beam: Outputs
    token_scores: np.ndarray


def main() -> None:
    """Export, translate, compare."""
    options = parser(__doc__)
    options.add_argument("model", type=existing, help="a model directory")
    options.add_argument("--source", type=existing, required=True, help="sentences, one a line")
    options.add_argument("--reference", type=existing, required=True, help="their translations")
    options.add_argument("--target-lang", help="where the vocabulary has tags")
    options.add_argument("--exports", nargs="+", default=EXPORTS, help="format:precision")
    arguments = options.parse_args()
    vocabulary = Vocabulary.load(arguments.model)
    encode = encoder_for(vocabulary, arguments.target_lang)
    sources = [list(encode(line)) for line in read_lines(arguments.source)]
    report(
        arguments,
        f"Exports of {arguments.model.resolve().parent.name}/{arguments.model.name}, {len(sources):,} sentences",
        "python -m benchmarks.exports " + " ".join(str(part) for part in _command(arguments)),
        _rows(arguments, vocabulary, sources),
    )


def _command(arguments: Namespace) -> list[Any]:
    files = ["--source", arguments.source, "--reference", arguments.reference]
    return [arguments.model, *files, *(["--target-lang", arguments.target_lang] if arguments.target_lang else [])]


def _rows(arguments: Namespace, vocabulary: Vocabulary, sources: Sequence[Ids]) -> list[dict[str, Any]]:
    references = References(read_lines(arguments.reference), arguments.target_lang)
    scorer = DirectionScorer("test", references, ["bleu"])

    def bleu(outputs: Outputs) -> float:
        return scorer.score([vocabulary.decode(ids) for ids in outputs]).scores["bleu"]

    ours = _run(load_engine(arguments.model), sources)
    reference_bleu = bleu(ours.beam)
    rows = []
    for name in ("pytorch:float32", *arguments.exports):
        to, precision = name.split(":")
        results, size = ours, (arguments.model / "model.safetensors").stat().st_size
        if to != "pytorch":
            with tempfile.TemporaryDirectory() as temporary:
                out = Path(temporary, "export")
                export(arguments.model, out, to, precision, sources[:NUM_CHECK_SENTENCES])
                size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
                results = _run(load_format(to).open(out), sources, ours.greedy)
        found = bleu(results.beam)
        rows.append(
            {
                "export": to,
                "precision": precision,
                "MB": size / 1e6,
                "equal greedy": _share_equal(results.greedy, ours.greedy),
                "equal beam 5": _share_equal(results.beam, ours.beam),
                "max log p error": float(np.abs(results.token_scores - ours.token_scores).max()),
                "BLEU": f"{found:.2f}",
                "difference": f"{found - reference_bleu:+.2f}",
            }
        )
    return rows


def _run(engine: Engine, sources: Sequence[Ids], targets: Outputs | None = None) -> Results:
    """targets: what to score; None takes the engine's own greedy outputs."""
    greedy, beam = ([found[0].ids for found in generate(engine, sources, options)] for options in (GREEDY, BEAM))
    return Results(greedy, beam, np.concatenate(score(engine, sources, targets or greedy)))


def _share_equal(ours: Outputs, theirs: Outputs) -> str:
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours):.1%}"


if __name__ == "__main__":
    main()
