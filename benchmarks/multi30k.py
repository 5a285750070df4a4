"""Multi30k English→German from scratch, the whole way, on this machine: `make bench-multi30k` or with --record.

Reads ../shared/data/multi30k, works in runs/multi30k (stopped, it goes on), and prints BLEU on test 2016 (raw, cased,
sacreBLEU 13a, beam 5), the time of every part, and the curve.
"""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.recording import parser, report
from deltalm_ds.files import read_json, write_json
from deltalm_ds.recipe.loading import recipe_path
from deltalm_ds.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "multi30k"
WORK = ROOT / "runs" / "multi30k"
TEST = "test_2016_flickr"


def main() -> None:
    """Run every part that is not done, print the record, and append it where asked."""
    arguments = parser(__doc__).parse_args()
    seconds = run_parts()
    (score,) = read_json("evaluation/scores.json")["directions"]
    title = f"Multi30k English→German, test 2016: BLEU {score['bleu']:.2f}"
    rows = [{"part": name, "seconds": value} for name, value in {**seconds, "all": sum(seconds.values())}.items()]
    report(arguments, title, "make bench-multi30k", rows, [_settings(score), *_training()])


def run_parts(data_only: bool = False) -> dict[str, float]:
    """In WORK, the commands of the recipe's header, or those that prepare its data; the seconds each took, also those
    of an earlier start."""
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there: this benchmark needs the Multi30k files.")
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    texts = ["--input", "text/train.en", "--input", "text/train.de"]
    sampling = ["--subword-samples", "8", "--sample-alpha", "0.3", "--processes", "2"]
    pairs = {split: ["--parallel", f"en-de=text/{split}.en,text/{split}.de"] for split in ("train", "val")}
    vocabulary = ["--size", "6000", "--character-coverage", "1.0", "--languages", "en,de"]
    test = ["--source", f"text/{TEST}.en", "--reference", f"text/{TEST}.de", "--target-lang", "de"]
    parts = [
        ("vocabulary", ["vocab", "train", *texts, *vocabulary]),
        ("shards/train", ["data", "build", "--vocab", "vocabulary", *pairs["train"], *sampling]),
        ("shards/val", ["data", "build", "--vocab", "vocabulary", *pairs["val"]]),
        ("run", ["train", str(recipe_path("multi30k_en_de")), "--ranks", "2"]),
        ("model", ["average", "run", "--last", "5"]),
        ("evaluation", ["evaluate", "model", *test]),
    ]
    _extract_text()
    done = read_json("seconds.json") if Path("seconds.json").exists() else {}
    for out, command in parts[:3] if data_only else parts:
        if out in done:
            continue
        start = time.monotonic()
        subprocess.run([Path(sys.executable).with_name("deltalm"), *command, "--out", out], check=True)
        done[out] = round(time.monotonic() - start, 1)
        write_json("seconds.json", done)
    return done


def _extract_text() -> None:
    """The raw files without the spaces at some line ends."""
    Path("text").mkdir(exist_ok=True)
    for split in ("train", "val", TEST):
        for language in ("en", "de"):
            with gzip.open(DATA / f"{split}.{language}.gz", "rt", encoding="utf-8") as file:
                text = "".join(f"{line.strip()}\n" for line in file)
            Path("text", f"{split}.{language}").write_text(text, encoding="utf-8")


def _settings(score: dict[str, Any]) -> str:
    """What was done to get the score, and what others got."""
    return (
        f"Recipe `recipes/multi30k_en_de.yaml`, from scratch, raw and cased, beam 5, mean of the last 5 checkpoints; "
        f"chrF2 {score['chrf']:.2f}; {score['bleu_signature']}. "
        f"Peers (not run here): plain PyTorch 36.1 in 40 minutes; published at this size 36.99 ± 0.24, "
        f"ratio {score['bleu'] / 36.99:.3f}."
    )


def _training() -> list[str]:
    """Its speed, and every fifth validation."""
    metrics = read_metrics(Path("run"))
    curve = [record for record in metrics if record["kind"] == "validation"][4::5]
    rates = sorted(record["tokens_per_second"] for record in metrics if record["kind"] == "train")
    table = [
        "| step | " + " | ".join(f"{record['step']:,}" for record in curve) + " |",
        "|---" * (len(curve) + 1) + "|",
        "| loss | " + " | ".join(f"{record['loss']:.3f}" for record in curve) + " |",
    ]
    speed = f"Training: median {rates[len(rates) // 2]:,.0f} tokens/s (both sides). Validation loss a token, smoothed:"
    return [speed, "\n".join(table)]


if __name__ == "__main__":
    main()
