"""Packaging of deltalm_ds: the top-level folders are reached through symbolic links inside the package."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
LINKED = ("kernels", "data_tools", "launch", "ds_configs")

for name in LINKED:
    link = ROOT / "deltalm_ds" / name
    if not link.is_dir():
        raise SystemExit(
            f"deltalm_ds/{name} must be a symbolic link to ../{name}, and is not: check the repository out with symbolic "
            "links (git config core.symlinks true), or unpack the sdist with a tool that keeps them."
        )

setup(
    name="deltalm-ds",
    version="0.1.0",
    description="Train and ship DeltaLM-style multilingual sequence-to-sequence models with DeepSpeed",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["deltalm_ds", "deltalm_ds.*"]),
    package_data={"deltalm_ds.ds_configs": ["*.json"]},
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8",
        "numpy",
        "pyarrow",
        "sentencepiece",
        "sacrebleu",
        "safetensors",
        "pydantic>=2",
        "PyYAML",
        "typer",
        "rich",
        "Babel",
        "zstandard",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "export": ["ctranslate2>=4.8.5", "transformers>=5.12"],
        "eval": ["sacrebleu[ja,ko]"],
        "mpi": ["mpi4py"],
        "gpu": ["triton; platform_system == 'Linux'"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["deltalm = deltalm_ds.cli:main"]},
)
