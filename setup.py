"""Packaging of deltalm_ds: the top-level folders are reached through symbolic links inside the package.

Probes no hardware and imports nothing that is installed: building needs setuptools alone.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
LINKED = ("kernels", "data_tools", "launch", "ds_configs", "recipes")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "deltalm_ds/__init__.py").read_text(encoding="utf-8"))

for name in LINKED:
    if not (ROOT / "deltalm_ds" / name).is_dir():  # a real folder in an sdist, a link in the repository
        raise SystemExit(
            f"deltalm_ds/{name} must be a symbolic link to ../{name}, and is not: check the repository out with "
            "symbolic links (git config core.symlinks true)."
        )
if VERSION is None:
    raise SystemExit('deltalm_ds/__init__.py must have a line __version__ = "…".')

setup(
    name="deltalm-ds",
    version=VERSION[1],
    description="Train and ship DeltaLM-style multilingual sequence-to-sequence models with DeepSpeed",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["deltalm_ds", "deltalm_ds.*"], exclude=["*.__pycache__"]),
    package_data={
        "deltalm_ds": ["py.typed"],
        "deltalm_ds.ds_configs": ["*.json"],
        "deltalm_ds.recipes": ["*.yaml", "tasks/*.yaml"],
        "deltalm_ds.launch.examples": ["hostfile.*"],
        "deltalm_ds.launch.slurm": ["*.sbatch"],
        "deltalm_ds.serving": ["*.html"],
    },
    # All that `deltalm demo` needs. Triton comes with torch's CUDA wheels; apex is used where found, never required.
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8",
        "numpy>=2",
        "pyarrow>=20",
        "sentencepiece>=0.2.3",
        "sentencex>=1.0.32",
        "pyromark>=0.9.14",
        "sacrebleu>=2.6",
        "safetensors",
        "ctranslate2>=4.8.5",
        "pydantic>=2",
        "PyYAML",
        "psutil",
        "typer",
        "rich",
        "Babel>=2.18",
        "ClusterShell>=1.10",
        "nvidia-ml-py",
        "zstandard",
        "tensorboard",
        "plotly>=6",
    ],
    extras_require={
        "export": ["transformers>=5.12", "tokenizers", "onnx", "onnxruntime"],
        "serve": ["starlette>=1", "uvicorn>=0.54", "h11", "prometheus-client", "py3langid>=0.4"],
        "documents": ["python-docx>=1.2", "lxml"],
        "eval": ["sacrebleu[ja,ko]", "rouge-score>=0.1.2", "nltk>=3.9", "py3langid>=0.4"],
        "mpi": ["mpi4py>=4.1"],
        "dev": [
            "accelerate",  # transformers' Trainer needs it, in benchmarks/quality
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "httpx2",
            "libretranslatepy",
            "playwright",  # drives a Chromium that is installed, for the tests of the server's page
            "axe-playwright-python",
            "pdoc",
            "ruff",
            "mypy",
            "types-PyYAML",
            "setuptools>=77",
            "openmpi; platform_system == 'Linux'",  # an mpirun for the tests; clusters bring their own
            "triton>=3.7; platform_system == 'Linux'",  # for the interpreter and ahead-of-time compilation
        ],
    },
    entry_points={"console_scripts": ["deltalm = deltalm_ds.cli:main"]},
)
