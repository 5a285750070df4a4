"""A rank that stops itself, as SIGSTOP does, in its first checkpoint; started as the launcher starts one.

`python stopping_rank.py RUN PLACE`: `writing`, when the weights are written; `publishing`, behind the last look at
whether it may; `nowhere`.
"""

import signal
import sys
import threading
from unittest import mock

from deltalm_ds.training import checkpoint, train

write, publish_directory = checkpoint._write, checkpoint.publish_directory


has_stopped = []


def stop():
    if not has_stopped:  # woken up, it may get to this place once more before it finds that it is an old one
        has_stopped.append(True)
        # one to the process may be taken by another thread, while this one goes on
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def write_and_stop(path, tensors):
    written = write(path, tensors)
    stop()
    return written


def stop_and_publish(temporary, path):
    stop()
    publish_directory(temporary, path)


PLACES = {
    "writing": ("_write", write_and_stop),
    "publishing": ("publish_directory", stop_and_publish),
    "nowhere": ("_write", write),
}

if __name__ == "__main__":
    with mock.patch.object(checkpoint, *PLACES[sys.argv[2]]):
        sys.exit(train.main([sys.argv[1]]))
