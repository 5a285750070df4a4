"""What tests of generation share."""

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
