"""The model before the first update of a start: its shape, and its weights from a checkpoint, a model, or fresh."""

from pathlib import Path

from pydantic import ValidationError

from deltalm_ds.checkpoints.directory import is_finite, load_model, read_config
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import Recipe, check_positions
from deltalm_ds.runs.checkpoints import model_directory
from deltalm_ds.vocabulary import Vocabulary


def model_config(recipe: Recipe, vocabulary: Vocabulary, checkpoint: Path | None) -> tuple[Path | None, DeltaLMConfig]:
    """Where the weights come from (None: they are fresh), and the model's shape with what the recipe changes of it.

    The recipe's initial model is not looked at where there is a checkpoint to go on from.

    Raises:
        InputError, DataError: there is no such model, it has another vocabulary, or the shape does not fit the recipe.
    """
    start = checkpoint or (recipe.initial_model and model_directory(recipe.initial_model))
    if start is not None and Vocabulary.load(start).hash != vocabulary.hash:
        raise DataError(
            f"The model {start} has another vocabulary than {recipe.vocabulary}: train with the model's own vocabulary."
        )
    try:
        if start is not None:
            changes = recipe.model.changes() if recipe.model is not None else {}
            config = DeltaLMConfig.model_validate(read_config(start).model_dump() | changes)
        else:
            assert recipe.model is not None  # the recipe is valid
            config = recipe.model.config(vocabulary.num_tokens)
    except ValidationError as error:
        faults = (f"model{''.join(f'.{part}' for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"The recipe's model cannot be made: {'; '.join(faults)}.") from None
    try:
        check_positions(recipe.data, config)
    except ValueError as error:
        raise InputError(f"The model {start} is too short: {error}.") from None
    return start, config


def starting_model(start: Path | None, config: DeltaLMConfig) -> DeltaLM:
    """The weights of a model directory, or fresh ones by torch's generator."""
    return DeltaLM(config) if start is None else load_model(start, **config.model_dump())


def check_finite(model: DeltaLM, origin: Path) -> None:
    """DataError naming the first weight that is NaN or infinite: no update could repair it."""
    for name, weight in model.named_parameters():
        if not is_finite(weight.detach()):
            raise DataError(
                f"{origin} holds NaN or infinite numbers in {name}: training from it learns nothing; take another."
            )
