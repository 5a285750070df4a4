"""Python imports this module at its start where this folder is on its path: CPU seconds of all imports of the process.

Written at its end to the folder that IMPORT_CLOCK names, under the process's number.
"""

import atexit
import importlib._bootstrap as bootstrap
import os
import threading
import time
from pathlib import Path

_load = bootstrap._find_and_load  # what is called for a module that is not loaded yet
_within = threading.local()
_seconds = [0.0]


def _timed(name, import_):
    if getattr(_within, "an_import", False):
        return _load(name, import_)
    began = time.process_time()
    _within.an_import = True
    try:
        return _load(name, import_)
    finally:
        _within.an_import = False
        _seconds[0] += time.process_time() - began


def _write():
    Path(os.environ["IMPORT_CLOCK"], str(os.getpid())).write_text(str(_seconds[0]))


if "IMPORT_CLOCK" in os.environ:
    bootstrap._find_and_load = _timed
    atexit.register(_write)
