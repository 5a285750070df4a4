"""How often Triton compiles the row-wise ops in a training of many micro-batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "count_row_compilations.py"


def test_no_number_of_tokens_is_compiled_again() -> None:
    """One kernel a form and direction (dropout: one for both), and those that add up strips; it was three of each."""
    pytest.importorskip("triton", reason="Triton is not installed")
    process = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {"layer_norm": 3 * 2 + 1, "feed_forward": 2 * 2 + 1, "dropout": 1}
