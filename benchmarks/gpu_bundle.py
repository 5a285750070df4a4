"""What a machine with torch, pytest and no network lacks for `benchmarks.gpu`, in one folder: `make gpu-bundle`.

Wheels for Python 3.12 on Linux x86-64, in the versions of constraints.txt, and the data of the part `quality`. Copy the
folder to `build/gpu-bundle` beside the repository's files, or name it with --bundle there.

    python -m benchmarks.gpu_bundle
    python -m benchmarks.gpu_bundle --also ctranslate2      38 MB; it needs the libraries of CUDA 12 there
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import BUNDLE
from benchmarks.gpu_parts.quality import make_data
from benchmarks.recording import ROOT

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
WHEELS = (
    *("annotated-types", "pydantic", "pydantic-core", "typing-inspection"),  # recipes and the model's configuration
    *("hjson", "zstandard"),  # DeepSpeed, and reading of compressed text
    "liger-kernel",  # a peer
)
BUILT = ("deepspeed",)  # there is a source archive only


def pinned(names: Sequence[str]) -> list[str]:
    """`name==version` of constraints.txt.

    Raises:
        KeyError: one has no pin.
    """
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE))
    return [f"{name}=={versions[name]}" for name in names]


def main() -> None:
    """Fill the folder anew, and list it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--to", type=Path, default=BUNDLE, help="the folder")
    options.add_argument("--also", action="append", default=[], help="another package of constraints.txt; repeatable")
    arguments = options.parse_args()
    shutil.rmtree(arguments.to, ignore_errors=True)
    arguments.to.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    download = [
        *pip,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        PYTHON,
        "--implementation",
        "cp",
    ]
    for platform in PLATFORMS:
        download += ["--platform", platform]
    subprocess.run([*download, "--dest", str(arguments.to), *pinned([*WHEELS, *arguments.also])], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(arguments.to)]
    subprocess.run([*build, *pinned(BUILT)], check=True)
    make_data(arguments.to / "data")
    files = [path for path in sorted(arguments.to.rglob("*")) if path.is_file()]
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(arguments.to)}")
    print(f"{sum(path.stat().st_size for path in files) / 1e6:8.2f} MB  in {arguments.to}")


if __name__ == "__main__":
    main()
