"""What each step from a random vanilla decoder to DeltaLM is worth, in miniature.

One model for English with three languages, both ways (`captions.py`). Every rung is fine-tuned alike
(`finetuning.yaml`): for the same seed with the same tokens in the same order. d and e are pre-trained once, for all
seeds; c to f start from the same encoder. Pairs of translation span corruption are those of the fine-tuning: it sees
no more translations.

    python -m benchmarks.quality.ladder --record     hours on two cores; stopped, it goes on
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality import captions
from benchmarks.quality.encoder import pretrain
from benchmarks.quality.outcome import outcome, show
from benchmarks.quality.study import Study, give_way
from benchmarks.recording import parser
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.token_ids import ROW_MULTIPLE

RECIPE = Path(__file__).with_name("finetuning.yaml")
ENCODER_STEPS, ENCODER_WINDOWS = 2_500, 85
SPANS = "{path: mono_shards, objective: span_corruption}"
TRANSLATION_SPANS = "{path: train, objective: translation_span_corruption}"
# At the rate of the fine-tuning, in windows of 64, spans unlearn what the encoder had learned: BLEU on dev was 2.
PRETRAINING = ("training.max_steps=800", "sampling.change_steps=800", "schedule.peak_lr=1.0e-3")
VANILLA = ("model.decoder=vanilla", "model.num_decoder_blocks=3")  # as many parameters as two interleaved blocks


@dataclass(frozen=True)
class Rung:
    """A system: what it is, how its recipe differs, and the parts that it starts from, the last of them its model."""

    what: str
    overrides: tuple[str, ...] = ()
    start: tuple[str, ...] = ()


RUNGS = {
    "a": Rung("a vanilla, from scratch", VANILLA),
    "b": Rung("b interleaved, from scratch"),
    "c": Rung("c interleaved, from an encoder", start=("encoder", "from_encoder")),
    "d": Rung("d = c + span corruption", start=("encoder", "from_encoder", "spans")),
    "e": Rung("e = d + translation span corruption", start=("encoder", "from_encoder", "both_spans")),
    "f": Rung("f vanilla, encoder's weights but for cross-attention", start=("encoder", "vanilla")),
}
COMPARED = ("ab", "bc", "cd", "de", "ac", "ae", "fc", "fe")


def main() -> None:
    """Do every part that is not done, and show what came of them."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the fine-tuning")
    options.add_argument("--rungs", default="".join(RUNGS), help="which, such as abc")
    arguments = options.parse_args()
    give_way()
    study = Study("captions")
    captions.prepare(study)
    for seed in arguments.seeds:
        for name in arguments.rungs:
            rung = RUNGS[name]
            for part in rung.start:
                _make(study, part)
            start = _starting_from(rung.start[-1]) if rung.start else ()
            study.deltalm(f"{name}_{seed}", "train", RECIPE, f"seed={seed}", *rung.overrides, *start)
    outcomes = [
        outcome(
            study,
            RUNGS[name].what,
            [f"{name}_{seed}" for seed in arguments.seeds],
            sum(map(study.seconds, RUNGS[name].start)),
        )
        for name in arguments.rungs
    ]
    pairs = [(arguments.rungs.find(first), arguments.rungs.find(second)) for first, second in COMPARED]
    show(arguments, "The ladder to DeltaLM", outcomes, [pair for pair in pairs if min(pair) >= 0])


def _starting_from(part: str) -> tuple[str, ...]:
    return f"initial_model={part}", "model=null"  # whose shape it has


def _make(study: Study, part: str) -> None:
    """A part that runs start from. Those that it starts from itself are there."""
    if part == "encoder":
        shape = load_recipe(RECIPE).model
        assert shape is not None
        texts = [study.path(f"mono/{language}.txt") for language in captions.LANGUAGES]
        study.make(
            part,
            lambda out: pretrain(
                texts, study.path("vocabulary"), out, shape.config(ROW_MULTIPLE), ENCODER_STEPS, ENCODER_WINDOWS
            ),
        )
    elif part == "from_encoder":
        study.deltalm(part, "init", "--from", "encoder", "--vocab", "vocabulary")
    elif part == "vanilla":
        vanilla = ("--decoder", "vanilla", "--cross-attention", "random", "--layer-map", "0 1 3")
        study.deltalm(part, "init", "--from", "encoder", "--vocab", "vocabulary", *vanilla)
    else:
        groups = [SPANS, TRANSLATION_SPANS][: 1 if part == "spans" else 2]
        data = f"data.train=[{', '.join(groups)}]"
        study.deltalm(
            part, "train", RECIPE, *_starting_from("from_encoder"), data, *PRETRAINING, "validation={shards: dev}"
        )


if __name__ == "__main__":
    main()
