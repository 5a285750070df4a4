"""Arguments and options that several verbs have, described once."""

from pathlib import Path
from typing import Annotated, Any

import typer

from deltalm_ds.errors import InputError
from deltalm_ds.generation.documents import FORMATS
from deltalm_ds.generation.documents.protected import IN_DOCUMENTS, PATTERNS
from deltalm_ds.generation.engines import ENGINES, MODEL_DIRECTORY
from deltalm_ds.generation.interface import DTYPES, RERANKERS, UNITS

_RECIPE = typer.Argument(help="A recipe (YAML).")
RecipePath = Annotated[Path, _RECIPE]
OptionalRecipePath = Annotated[Path | None, _RECIPE]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, as in training.max_steps=100.")]
Again = Annotated[bool, typer.Option("--again", help="Start although earlier starts all failed at the same step.")]
AcceptChangedData = Annotated[
    bool, typer.Option("--accept-changed-data", help="Go on with other data than the run had; it is recorded.")
]

_OTHERS = ", ".join(entry.title for entry in ENGINES.values() if entry.formats != (MODEL_DIRECTORY,))
Model = Annotated[Path, typer.Argument(help=f"A model directory, or one of {_OTHERS}.", show_default=False)]
TargetLang = Annotated[str | None, typer.Option(help="Language to translate into, where the model has tags for such.")]
Beam = Annotated[int, typer.Option(help="Beams kept at each step; 1 is greedy.")]
LengthPenalty = Annotated[float, typer.Option(help="Scores are divided by length to this power; 0 takes the sum.")]
MinLength = Annotated[int, typer.Option(help="Least tokens of an output, without </s>.")]
MaxLength = Annotated[int, typer.Option(help="Most tokens of an output, without </s>.")]
MinLengthRatio = Annotated[float, typer.Option(help="Least tokens of an output, as a share of its source's.")]
MaxLengthRatio = Annotated[float, typer.Option(help="Most tokens of an output, as a share of its source's; 0: any.")]
Temperature = Annotated[float, typer.Option(help="Above 0: draw outputs, from flatter probabilities above 1.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from so many most probable tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the most probable tokens with this share together.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Prefix = Annotated[str, typer.Option(help="What every output begins with.")]
NoRepeatNgramSize = Annotated[
    int, typer.Option("--no-repeat-ngram-size", help="An n-gram of this size occurs once in an output; 0 allows all.")
]
EngineName = Annotated[
    str | None, typer.Option("--engine", help=f"{', '.join(ENGINES)}; by default what the model is for.")
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores, fewer on a busy machine.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; by default a GPU if the engine has one.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help=f"What is computed in: {', '.join(DTYPES)}. By default on a CPU float32, or an export's own; on a GPU "
        "bfloat16, or float16 before sm_80.",
    ),
]
Check = Annotated[
    bool,
    typer.Option("--check", help="Say of each output what looks wrong: script, length, repetition, what is missing."),
]
AsDocument = Annotated[
    bool, typer.Option("--document", help="A document: sentence by sentence, nothing left out, layout and markup kept.")
]
FormatName = Annotated[
    str | None, typer.Option("--format", help=f"Of a document: {', '.join(FORMATS)}; by default as its suffix says.")
]
SourceLang = Annotated[
    str | None,
    typer.Option(
        help="Of the sources: which models such as NLLB must be told, by whose rules a document's sentences end (by "
        "default as its script tells), what a reverse model translates into, and whose script --check expects."
    ),
]
Protect = Annotated[
    str | None,
    typer.Option(
        help=f"What is copied as it is, of {', '.join(PATTERNS)}; by default nothing, and {','.join(IN_DOCUMENTS)} of "
        "documents."
    ),
]
Alignments = Annotated[
    str | None,
    typer.Option(help=f"What each output looks at in its source, between {' or '.join(UNITS)}, in --json and --check."),
]
GlossaryFile = Annotated[
    Path | None,
    typer.Option("--glossary", help="Lines term<TAB>form: whose source has the term has the form."),
]
BanFile = Annotated[Path | None, typer.Option("--ban", help="Phrases, one a line, that no output has.")]
Rerank = Annotated[
    str | None, typer.Option(help=f"Choose among as many outputs as the beam by {', '.join(RERANKERS)}.")
]
RerankWeight = Annotated[
    float | None, typer.Option(help="Of the reverse score (by default 1) or the coverage (0.2) beside the own score.")
]
ReverseModelPath = Annotated[
    Path | None, typer.Option("--reverse-model", help="A model or export the other way, for --rerank reverse.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Where a document is written; by default standard output.")]
AsIds = Annotated[bool, typer.Option("--ids", help="Space-separated token ids in and out, without </s>.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def refuse(when: str, given: dict[str, Any]) -> None:
    """Options that would be ignored."""
    for name, value in given.items():
        if value:
            raise InputError(f"{name} means nothing {when}: leave it out.")
