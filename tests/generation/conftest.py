"""What tests of generation share."""

import warnings

import foreign_toys
import pytest
import typer
from typer.testing import CliRunner

from deltalm_ds.cli import evaluation, export, translation


@pytest.fixture(scope="module")
def run():
    """Runs a verb, which must end well, and gives what it prints."""
    app = typer.Typer()
    for verb in (translation.translate, translation.score, evaluation.evaluate, export.export):
        app.command()(verb)

    def run(*arguments, input=None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """A tiny model of each family of others, by its name."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("foreign")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {family: foreign_toys.model_of(family, directory) for family in foreign_toys.FAMILIES}


@pytest.fixture(scope="session")
def converted(directories):
    """The same, by CTranslate2's own converter."""
    from ctranslate2.converters import TransformersConverter

    found = {}
    for family, directory in directories.items():
        left_out = {"config.json", "generation_config.json", "model.safetensors"}
        files = [path.name for path in directory.iterdir() if path.name not in left_out]
        found[family] = directory.with_name(f"{family}-ct2")
        TransformersConverter(str(directory), copy_files=files).convert(str(found[family]))
    return found
