"""`deltalm recipe keys | show`: what a recipe can say."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json, print_table

if TYPE_CHECKING:
    from deltalm_ds.recipe.keys import Key

app = typer.Typer(
    help="The keys of a recipe: what each means, its type and default. Example: deltalm recipe show training.clip_norm",
    no_args_is_help=True,
)


@app.command()
def keys(as_json: AsJson = False) -> None:
    """List all keys; N is the number of an item in a list, from 0.

    Example: deltalm recipe keys
    """
    from deltalm_ds.recipe.keys import recipe_keys

    found = recipe_keys()
    if as_json:
        print_json([asdict(key) for key in found])
    else:
        _print_keys(found)


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A key or section, such as schedule or data.train.0.weight.")],
    as_json: AsJson = False,
) -> None:
    """Show one key, or a section with its kinds and keys.

    Example: deltalm recipe show schedule
    """
    from deltalm_ds.recipe.keys import find_key, keys_below

    found = find_key(key)
    below = keys_below(found)
    if as_json:
        print_json(asdict(found) | {"keys": [asdict(one) for one in below]})
        return
    print(f"{found.path}: {found.type}{f'; default: {found.default}' if found.default else ''}")
    print(found.description)
    if found.choices:
        print()
        print_table(("kind", ""), found.choices, "ll")
    if below:
        print()
        _print_keys(below)


def _print_keys(keys: list["Key"]) -> None:
    cells = [
        (key.path, key.type, key.default, f"{'of ' if key.kinds else ''}{' and '.join(key.kinds)}", key.description)
        for key in keys
    ]
    print_table(("key", "type", "default", "", ""), cells, "lllll")
