"""How the steps of a search are run: as they are on a CPU, recorded as CUDA graphs on a GPU."""

from collections.abc import Callable

from deltalm_ds.model.cuda_graph import GraphRecorder

LOOK_EVERY = 8  # steps on a GPU: a look waits for it, and a step in excess costs less than a wait
FIRST_LENGTH = 32  # positions of the first graph; doubled


class StepRunner:
    """Runs steps that never wait for the device.

    Without a recorder their shapes are exact, and the search looks after each step which sentences are done, and drops
    these at once. With one, shapes stay the same for many steps: the first of a shape runs as it is, the second is
    recorded, and then the recording is replayed: one launch instead of some two hundred. Only every few steps the
    search looks what is done, and it drops sentences when they are half of all: steps in excess change nothing of them.
    """

    def __init__(self, recorder: GraphRecorder | None) -> None:
        self._recorder = recorder
        self._shape: tuple[int, int] | None = None
        self._replay: Callable[[], None] | None = None

    def length(self, least: int, most: int) -> int:
        """Positions that a step of at least `least` is to look at."""
        if self._recorder is None:
            return least
        length = FIRST_LENGTH
        while length < least:
            length *= 2
        return min(length, most)

    def run(self, step: Callable[[int], None], length: int, num_sentences: int) -> None:
        """step(length), for as many sentences."""
        shape = (length, num_sentences)
        if self._recorder is None:
            step(length)
        elif shape != self._shape:
            self._shape, self._replay = shape, None
            self._recorder.warm_up(lambda: step(length))
        else:
            if self._replay is None:
                self._replay = self._recorder.record(lambda: step(length))
            self._replay()

    def looks_after(self, num_steps: int) -> bool:
        """Whether it is time to look which sentences are done."""
        return self._recorder is None or num_steps % LOOK_EVERY == 0

    def drops(self, num_unfinished: int, num_sentences: int) -> bool:
        """Whether it is worth while to go on without the sentences that are done."""
        return num_unfinished < num_sentences if self._recorder is None else 2 * num_unfinished <= num_sentences
