"""`python collective_ranks.py OUT RANKS_PER_HOST HOSTS SLOW_HOST`: the collective test in forked ranks."""

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from deltalm_ds.launch.preflight import collective_check
from deltalm_ds.training.rendezvous import free_port

SLEEP_S = 0.05


def rank(number: int, out: Path, per_host: int, num_hosts: int, slow: int) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(per_host * num_hosts), "LOCAL_RANK": str(number % per_host)}
    if number // per_host == slow:
        exchange = dist.batch_isend_irecv

        def exchange_late(both: list[dist.P2POp]) -> list[dist.Work]:
            time.sleep(SLEEP_S)
            return exchange(both)

        dist.batch_isend_irecv = exchange_late
    collective_check.PAIR_BYTES["cpu"] = 1 << 18
    collective_check.SIZES["cpu"] = (1 << 12, 1 << 16)
    collective_check.main(out)


def main(out: Path, per_host: int, num_hosts: int, slow: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    children = []
    for number in range(per_host * num_hosts):
        child = os.fork()
        if child == 0:
            try:
                rank(number, out, per_host, num_hosts, slow)
            except BaseException as error:
                print(f"rank {number}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
