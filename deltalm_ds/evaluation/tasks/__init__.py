"""The table of tasks: what the paper fine-tunes for. A new one is a file here, a row, its recipes and its test."""

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.evaluation.tasks import webnlg, wikilingua, wmt10, xgiga, xqg, zero_shot_summarisation
from deltalm_ds.evaluation.tasks.interface import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        wmt10.TASK,
        xqg.TASK,
        xgiga.TASK,
        wikilingua.TASK,
        webnlg.TASK,
        zero_shot_summarisation.TASK,
    )
}


def find_task(name: str) -> Task:
    """The task of a name; InputError with the nearest name if there is none."""
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}, the nearest is {nearest(name, TASKS)!r}: {', '.join(TASKS)}.")
    return TASKS[name]
