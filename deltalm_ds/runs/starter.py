"""What passes between ranks and whoever started them on their host: a variable and signals. Imports no torch."""

import signal

STARTED_BY = "DELTALM_STARTED_BY"  # environment: the process whose end is to end the ranks too


def stop_signals() -> set[signal.Signals]:
    """Those that ask a run to end. SIGHUP is none where it is ignored, which is what nohup does: go on."""
    asking = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}
    return asking - {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else asking
