"""Checkpoints that several files start from."""

import pytest
from foreign import write_dictionary, xlm_roberta


@pytest.fixture
def xlmr(tmp_path):
    """An XLM-R directory with its dictionary; the test may ask for its tensors by `recognise`."""
    directory = tmp_path / "xlmr"
    xlm_roberta(4).save_pretrained(directory)
    write_dictionary(directory)
    return directory
