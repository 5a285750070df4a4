"""Steps of the training data made beside training, a few ahead of it."""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import replace

from deltalm_ds.data.collation import Batch
from deltalm_ds.data.stream import StepBatches, TrainingStream

PREFETCH_STEPS = 2


def prefetch(
    stream: TrainingStream,
    first_step: int,
    last_step: int,
    rank: int,
    world_size: int,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Generator[StepBatches, None, None]:
    """Steps, made up to two ahead by a thread that ends with the generator.

    An error in the thread is raised here, at the step where it happened.

    Args:
        stream: what the steps are made of.
        first_step: the first that is given.
        last_step: the one behind the last.
        rank: whose share of each step is given, from 0.
        world_size: the number of ranks.
        prepare: what the thread makes of each micro-batch.
    """
    ready: queue.Queue[StepBatches | BaseException] = queue.Queue(maxsize=PREFETCH_STEPS)
    stopped = threading.Event()

    def hand_over(item: StepBatches | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for step in range(first_step, last_step):
                if stopped.is_set():
                    return
                batches = stream.micro_batches(step, rank, world_size)
                if prepare is not None:
                    batches = replace(batches, micro_batches=[prepare(batch) for batch in batches.micro_batches])
                hand_over(batches)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(first_step, last_step):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
