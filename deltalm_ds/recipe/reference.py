"""docs/recipe.md, made from the schema: `python -m deltalm_ds.recipe.reference > docs/recipe.md`."""

from collections.abc import Iterator

from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.recipe.keys import Key, keys_below, recipe_keys
from deltalm_ds.token_ids import ROW_MULTIPLE

HEAD = """# Recipe keys

Made from the schema by `python -m deltalm_ds.recipe.reference > docs/recipe.md`; do not edit. [Training](training.md)
tells what a recipe is. `deltalm recipe keys` prints the same, `deltalm recipe show KEY` one key or section. N is the
number of an item in a list, from 0; a key is changed on the command line by its path, as in `data.train.0.weight=2`.
Where a section has kinds, a kind's name alone may stand for the section: `objective: span_corruption` is
`objective: {kind: span_corruption}`.
"""


def markdown() -> str:
    """The whole page."""
    keys = recipe_keys()
    top = [key for key in keys if "." not in key.path]
    parts = [HEAD, *_table("The recipe", "What stands at the top.", top)]
    # Below these, a phase has the keys of sections that are there already.
    shown = [key for key in keys if key.is_section and not key.path.startswith("phases.N.")]
    for section in shown:
        parts += _table(f"`{section.path}`", section.description, keys_below(section))
        parts += [f"- `{kind}`: {about}" for kind, about in section.choices] + [""] * bool(section.choices)
        if section.path == "model":
            parts += _presets()
    return "\n".join(parts).rstrip() + "\n"


def _table(title: str, description: str, keys: list[Key]) -> Iterator[str]:
    yield from (f"## {title}", "", description, "", "| key | type | default | |", "|---|---|---|---|")
    for key in keys:
        of_kinds = f"Of {' and '.join(key.kinds)}. " if key.kinds else ""
        yield f"| `{key.path}` | {key.type} | {key.default} | {of_kinds}{key.description} |"
    yield ""


def _presets() -> Iterator[str]:
    """The sizes that `model.preset` names."""
    yield f"| preset | {' | '.join(PRESETS)} |"
    yield "|---" * (len(PRESETS) + 1) + "|"
    presets = [DeltaLMConfig.preset(name, vocabulary_size=ROW_MULTIPLE).model_dump() for name in PRESETS]
    for name in (name for name in presets[0] if name != "vocabulary_size"):
        yield f"| {name} | {' | '.join(str(preset[name]).lower() for preset in presets)} |"
    yield ""


if __name__ == "__main__":
    print(markdown(), end="")
