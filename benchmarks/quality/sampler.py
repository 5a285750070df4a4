"""How the temperature of the sampler shares quality between rich and poor languages.

The model, data and steps of the ladder's rung b (interleaved, from scratch); the sampling alone differs.

    python -m benchmarks.quality.sampler --record     hours on two cores; stopped, it goes on
"""

from pathlib import Path

from benchmarks.quality import captions
from benchmarks.quality.outcome import outcome, show
from benchmarks.quality.study import Study, give_way
from benchmarks.recording import parser

RECIPE = Path(__file__).with_name("finetuning.yaml")
RISING = "rising 1 to 5"
SAMPLERS = {  # by the name of their runs; those of the rising temperature are the ladder's
    "b": (RISING, ()),
    "t1": ("T = 1", ("sampling={temperature_end: 1.0}",)),
    "t5": ("T = 5", ("sampling={temperature_end: 5.0}",)),
    "falling": ("falling 5 to 1", ("sampling.temperature_start=5.0", "sampling.temperature_end=1.0")),
    "unimax": ("UniMax, at most 8 passes", ("sampling={kind: unimax, max_passes: 8}",)),
}


def main() -> None:
    """Do every part that is not done, and show what came of them."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the training")
    arguments = options.parse_args()
    give_way()
    study = Study("captions")
    captions.prepare(study)
    for seed in arguments.seeds:
        for name, (_, overrides) in SAMPLERS.items():
            study.deltalm(f"{name}_{seed}", "train", RECIPE, f"seed={seed}", *overrides)
    outcomes = [
        outcome(study, what, [f"{name}_{seed}" for seed in arguments.seeds]) for name, (what, _) in SAMPLERS.items()
    ]
    show(arguments, "Samplers of rich and poor languages", outcomes, [(n, 0) for n in range(1, len(outcomes))])


if __name__ == "__main__":
    main()
