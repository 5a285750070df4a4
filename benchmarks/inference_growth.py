"""How generation grows with batch, beam, length and vocabulary, ours beside CTranslate2: `make bench-inference_growth`.

Each axis alone around one point; every row is measured as by benchmarks/inference.py, in a process of its own. A slope
is the exponent of the power of the axis that fits best: 1 is proportional, 0 is no growth.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.device import DEVICE, TOY
from benchmarks.inference import run_worker
from benchmarks.recording import FAILED, ROOT, keep, parser, report

Key = tuple[Any, ...]  # an engine and a point

ENGINES = ("pytorch-float32", "ctranslate2-float32")
POINT = {"batch": 2, "beam": 2, "length": 4, "vocabulary": 1000} if TOY else {
    "batch": 8, "beam": 5, "length": 32, "vocabulary": 64_000
}  # fmt: skip
AXES: dict[str, tuple[int, ...]] = (
    {"batch": (1, 2), "vocabulary": (1000, 2000)}
    if TOY
    else {"batch": (1, 8, 64), "beam": (1, 2, 5, 10), "length": (8, 32, 128), "vocabulary": (8_000, 64_000, 250_001)}
)
MEASURES = ("tokens/s", "ms a step", "peak GiB")  # that have a slope
COLUMNS = (*MEASURES, "x roofline", FAILED)


def main() -> None:
    """Measure every point by every engine, and show the table and the slopes."""
    options = parser(__doc__)
    options.add_argument("--preset", default="tiny" if TOY else "base", help="size of the model")
    options.add_argument("--rows", default=",".join(ENGINES), help="which engines and precisions, comma-separated")
    options.add_argument("--axes", default=",".join(AXES), help="which axes, comma-separated")
    options.add_argument("--repeats", type=int, default=1 if TOY else 3, help="timed runs, of which the median counts")
    arguments = options.parse_args()
    points = [(axis, POINT | {axis: value}) for axis in arguments.axes.split(",") for value in AXES[axis]]
    engines = arguments.rows.split(",")
    shared = ["--preset", arguments.preset, "--rows", arguments.rows, "--repeats", str(arguments.repeats)]
    found: dict[Key, dict[str, Any]] = {}
    (ROOT / "runs").mkdir(exist_ok=True)
    for vocabulary in dict.fromkeys(point["vocabulary"] for _, point in points):
        keys = dict.fromkeys(
            _key(e, point) for e in engines for _, point in points if point["vocabulary"] == vocabulary
        )
        for key, row in _measure([*shared, "--vocabulary", str(vocabulary)], keys):
            found[key] = keep(arguments, "growth", row)
    rows = [{"axis": axis, **found[_key(engine, point)]} for engine in engines for axis, point in points]
    around = ", ".join(f"{axis} {value:,}" for axis, value in POINT.items())
    title = f"How generation grows on {DEVICE.type}, DeltaLM-{arguments.preset}, around {around}"
    command = " ".join(["python -m benchmarks.inference_growth", *sys.argv[1:]])
    report(arguments, title, command, rows, [slopes(rows)])


def _key(engine: str, point: Mapping[str, int]) -> Key:
    return engine, *(point[axis] for axis in POINT)


def _measure(options: Sequence[str], keys: Iterable[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The rows of one model."""
    with TemporaryDirectory(dir=ROOT / "runs", prefix="inference.") as exports:
        failed = run_worker(options, exports, "export")
        for key in keys:
            engine, *sizes = key
            point = dict(zip(POINT, sizes, strict=True))
            row = {FAILED: failed.get(engine, failed.get(FAILED))}
            if row[FAILED] is None:
                of_point = [*options, "--sentences", str(point["batch"]), "--length", str(point["length"])]
                row = run_worker(of_point, exports, f"{engine}:{point['beam']}")
            yield key, {"engine": engine, **point, **{name: row[name] for name in COLUMNS if name in row}}


def slopes(rows: Iterable[dict[str, Any]]) -> str:
    """The exponents of what was measured along each axis, by engine, in words."""
    curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if FAILED not in row:
            curves.setdefault((row["axis"], row["engine"]), []).append(row)
    found = []
    for (axis, engine), points in curves.items():
        if len(points) > 1:
            x = np.log([point[axis] for point in points])
            exponents = (f"{name} {np.polyfit(x, np.log([p[name] for p in points]), 1)[0]:.2f}" for name in MEASURES)
            found.append(f"{axis}, {engine}: {', '.join(exponents)}")
    return f"Slopes in logarithms: {'; '.join(found)}."


if __name__ == "__main__":
    main()
