"""Whether training on this device learns what it learns on a CPU: the losses of a run beside those of a committed one.

The task is the README's: English with German on CLDR phrases, a tiny model, by `deltalm train`'s own way (recipe,
DeepSpeed, one rank), in 16 bits on a GPU. The committed losses are those of a CPU in float32. Data come from a folder
that `python -m benchmarks.gpu_bundle` made, or, where Babel is installed, are made here.

    python -m benchmarks.gpu_parts.quality --write-curve     the committed losses anew, on a CPU
"""

import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.device import ON_GPU, TOY
from benchmarks.recording import FAILED, ROOT, keep, parser
from deltalm_ds.files import read_json, write_json

CURVES = ROOT / "benchmarks" / "gpu_parts" / "quality_curves.json"
DATA_VARIABLE = "DELTALM_QUALITY_DATA"  # a folder with vocabulary and shards
MAX_STEPS, TOY_STEPS = 400, 20
LOGGED = 20  # points of a curve
NUM_PIECES, SCALE = 2000, 0.2  # 4,000 pairs
# Largest difference of a logged loss, and of the mean over the second half of a run, in nats a token: about four times
# what bfloat16 is off on a CPU (`quality_curves.json`).
POINT_BAND, MEAN_BAND = 0.02, 0.005


def make_data(directory: Path) -> None:
    """Vocabulary and shards of the task, in `directory`; needs Babel."""
    from deltalm_ds.data_tools.build import CorpusSpec, build
    from deltalm_ds.data_tools.cldr import draw_corpus
    from deltalm_ds.data_tools.sources import TextSource
    from deltalm_ds.data_tools.train_vocabulary import train

    corpus = directory / "corpus"
    corpus.mkdir(parents=True)
    splits = {split: pairs for split, pairs in draw_corpus("de", seed=1, scale=SCALE).items() if split != "test"}
    for split, pairs in splits.items():
        for language, texts in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (corpus / f"{split}.{language}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    texts = [corpus / "train.en", corpus / "train.de"]
    vocabulary = train(texts, directory / "vocabulary", NUM_PIECES, character_coverage=1.0, languages=("en", "de"))
    for split in splits:
        source = TextSource((corpus / f"{split}.en", corpus / f"{split}.de"))
        build([CorpusSpec.from_name("en-de", [source])], vocabulary, directory / split)


def train_run(data: Path, run: Path, engine: str, max_steps: int) -> dict[str, Any]:
    """Train in `run`; the losses by step, the validation's last, and the seconds.

    Raises:
        RuntimeError: the training failed; its messages are on stderr.
    """
    from deltalm_ds.data.manifest import MANIFEST
    from deltalm_ds.launch.local import train_on_this_machine
    from deltalm_ds.recipe.loading import load_recipe, recipe_path
    from deltalm_ds.runs.metrics import read_metrics
    from deltalm_ds.training.prepare import prepare_run

    overrides = [
        f"vocabulary={data / 'vocabulary'}",
        f"data.train=[{{path: {data / 'train'}, objective: seq2seq, directions: both}}]",
        f"validation={{shards: {data / 'dev'}}}",
        f"deepspeed={engine}",
        f"schedule.warmup_steps={max_steps // 4}",
        "training.matmul_precision=highest",
        f"training.max_steps={max_steps}",
        f"training.save_every={max_steps}",
        f"training.log_every={max(1, max_steps // LOGGED)}",
    ]
    prepare_run(load_recipe(recipe_path("cldr_en_de"), overrides), run)
    start = time.monotonic()
    code = train_on_this_machine(run, 1)
    if code:
        raise RuntimeError(f"training ended with exit code {code}")
    records = read_metrics(run)
    return {
        "engine": engine,
        "data": read_json(data / "train" / MANIFEST)["vocabulary_hash"],  # which all of its text decides
        "losses": {str(record["step"]): round(record["loss"], 5) for record in records if record["kind"] == "train"},
        "validation": [round(record["nll"], 5) for record in records if record["kind"] == "validation"][-1],
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    """Train, and keep a row for each logged step and one for all."""
    options = parser(__doc__)
    options.add_argument("--write-curve", action="store_true", help="write what this CPU gives, in both precisions")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(os.environ.get(DATA_VARIABLE) or Path(scratch) / "data")
        if not data.is_dir():
            if importlib.util.find_spec("babel") is None:
                keep(arguments, "quality", {FAILED: f"neither {DATA_VARIABLE} nor Babel is here: there are no data"})
                return
            make_data(data)
        if arguments.write_curve:
            write_curves(data, Path(scratch))
            return
        steps = TOY_STEPS if TOY else MAX_STEPS
        found = train_run(data, Path(scratch) / "run", _engine(), steps)
    for row in compare(found, read_json(CURVES), steps):
        keep(arguments, "quality", row)


def _engine() -> str:
    """bfloat16 where the GPU has it, else float16; float32 on a CPU."""
    import torch

    if not ON_GPU:
        return "fp32_zero1"
    return "bf16_zero1" if torch.cuda.get_device_capability() >= (8, 0) else "fp16_zero1"


def compare(found: dict[str, Any], curves: dict[str, Any], max_steps: int) -> list[dict[str, Any]]:
    """A row for each logged step, and one that says whether the curve is within the band.

    Raises:
        ValueError: the committed losses are of other data.
    """
    expected = curves["float32"][str(max_steps)]
    if found["data"] != expected["data"]:
        raise ValueError("the committed losses are of other data than these: another version of Babel or SentencePiece")
    rows = [
        {
            "step": int(step),
            "loss": loss,
            "on a CPU": expected["losses"][step],
            "apart": loss - expected["losses"][step],
        }
        for step, loss in found["losses"].items()
    ]
    later = [row["apart"] for row in rows[len(rows) // 2 :]]
    mean, largest = sum(later) / len(later), max(abs(row["apart"]) for row in rows)
    summary = {
        "what": "curve",
        "engine": found["engine"],
        "mean apart": mean,
        "largest apart": largest,
        "band": [MEAN_BAND, POINT_BAND],
        "validation": found["validation"],
        "validation on a CPU": expected["validation"],
        "seconds": found["seconds"],
        "ok": abs(mean) <= MEAN_BAND and largest <= POINT_BAND,  # false with nan
    }
    return [*rows, summary]


def write_curves(data: Path, scratch: Path) -> None:
    """What this CPU gives in float32 (the reference) and in bfloat16 (what the band is made from)."""
    curves: dict[str, Any] = {}
    for precision, engine in (("float32", "fp32_zero1"), ("bfloat16", "bf16_zero1")):
        for steps in (TOY_STEPS, MAX_STEPS):
            found = train_run(data, scratch / f"{precision}_{steps}", engine, steps)
            curves.setdefault(precision, {})[str(steps)] = found
    write_json(CURVES, curves)


if __name__ == "__main__":
    main()
