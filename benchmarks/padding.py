"""Padding of micro-batches, for recipes whose data is at hand: with and without CUDA graphs, and how often one serves.

    python -m benchmarks.padding --ranks 2 --steps 400 demo/finetuning/recipe.yaml

Nothing is trained: a step's lengths are enough. Rank 0's micro-batches are followed through the `Recordings` of a
training.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.recording import existing, parser, report
from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.padding import Shape, on_ladder, rounded_up
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.graphs import Recordings
from deltalm_ds.training.inputs import open_inputs


def main() -> None:
    """One row a recipe."""
    options = parser(__doc__)
    options.add_argument("recipes", nargs="+", type=existing)
    options.add_argument("--ranks", type=int, default=1)
    options.add_argument("--steps", type=int, default=400, help="the first ones")
    arguments = options.parse_args()
    rows = [_row(load_recipe(path), arguments.ranks, arguments.steps) for path in arguments.recipes]
    report(arguments, "Padding of micro-batches", f"python -m benchmarks.padding --ranks {arguments.ranks} …", rows)


def _row(recipe: Recipe, num_ranks: int, num_steps: int) -> dict[str, Any]:
    num_steps = min(num_steps, recipe.training.max_steps)
    shapes = list(_shapes(recipe, num_ranks, num_steps))
    on_rungs = [on_ladder(shape) for shape in shapes]
    num_recordings, num_replays = _graphs(on_rungs)
    return {
        "recipe": recipe.name,
        "steps": num_steps,
        "micro-batch (tokens)": recipe.batch.micro_batch_tokens,
        "padding, multiples of 32 (%)": _added(shapes, rounded_up),
        "padding, ladder (%)": _added(shapes, on_ladder),
        "shapes": len(set(on_rungs)),
        "recordings": num_recordings,
        "replayed (%)": 100 * num_replays / len(shapes),
    }


def _shapes(recipe: Recipe, num_ranks: int, num_steps: int) -> Iterator[Shape]:
    """Those of rank 0's micro-batches, as they come."""
    stream, batch = open_inputs(recipe).stream, recipe.batch
    for step in range(num_steps):
        drawn = stream.global_batch(step)
        source, target = drawn.source_lengths, drawn.target_lengths
        ranks = deal_micro_batches(source, target, num_ranks, batch.micro_batch_tokens, batch.min_micro_batches)
        for rows in ranks[0]:
            s, t = source[rows], target[rows]
            if len(rows):
                yield Shape(int(s.sum()), int(t.sum()), len(rows), int(s.max()), int(t.max()))


def _added(shapes: Iterable[Shape], to_shape: Callable[[Shape], Shape]) -> float:
    """Tokens of padding, in percent of the others."""
    before = sum(sum(shape[:2]) for shape in shapes)
    return 100 * (sum(sum(to_shape(shape)[:2]) for shape in shapes) / before - 1)


def _graphs(shapes: Iterable[Shape]) -> tuple[int, int]:
    """How many recordings are made, and how many micro-batches are replays."""
    recordings, made = Recordings[Shape](), list[Shape]()
    num_replays = 0
    for shape in shapes:

        def record(shape: Shape = shape) -> Shape:
            made.append(shape)
            return shape

        num_replays += recordings.of(shape, record) is not None
    return len(made), num_replays


if __name__ == "__main__":
    main()
