"""`deltalm launch`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltalm_ds.cli.options import AcceptChangedData, Again, AsJson, OptionalRecipePath, Overrides
from deltalm_ds.cli.output import print_json, print_table, print_values, size_text
from deltalm_ds.errors import STOPPED_EXIT_CODE, InputError

if TYPE_CHECKING:
    from deltalm_ds.launch.hostfile import Host

MOST_RANKS_SHOWN = 10


def launch(
    recipe: OptionalRecipePath = None,
    overrides: Overrides = None,
    hostfile: Annotated[Path | None, typer.Option(help="Hosts in DeepSpeed's syntax: n1 slots=8.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory, which all hosts share; a run that is in it goes on.")
    ] = None,
    include: Annotated[str | None, typer.Option(help="Of the hostfile only these: n1@n2:0,2.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Of the hostfile not these.")] = None,
    expect_hosts: Annotated[int | None, typer.Option(min=1, help="An error if there are not so many.")] = None,
    expect_slots: Annotated[int | None, typer.Option(min=1, help="An error if there are not so many.")] = None,
    again: Again = False,
    accept_changed_data: AcceptChangedData = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the hosts, and the network by a collective over all ranks.")
    ] = False,
    dry_run: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Only work out what N ranks would get: of the hostfile, or on hosts of 8."
        ),
    ] = None,
    status: Annotated[Path | None, typer.Option(help="Only say what this run is at.", metavar="RUN")] = None,
    stop: Annotated[Path | None, typer.Option(help="Only end this run, saved, on every host.", metavar="RUN")] = None,
    slurm: Annotated[
        Path | None, typer.Option(help="Only write a batch script of SLURM's for the run.", metavar="SCRIPT")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="An option for that script, as in --sbatch=--nodes=2.", metavar="OPTION")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit that script.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on the hosts of a hostfile over ssh, supervised: what fails is named, ended, and started again.

    Exit codes: 0 done; 75 stopped on request, saved; 2, 3, 4 do not try again; any other: try again.

    Example: deltalm launch --hostfile hosts recipes/multi30k_en_de.yaml --out runs/multi30k
    """
    if status is not None:
        _print_status(status, as_json)
    elif stop is not None:
        _stop(stop, as_json)
    elif slurm is not None:
        _write_batch_script(slurm, recipe, overrides or [], out, sbatch or [], submit)
    elif dry_run is not None:
        hosts = _hosts(hostfile, include, exclude, expect_hosts, expect_slots) if hostfile is not None else ()
        _dry_run(recipe, overrides or [], hosts, dry_run, as_json)
    else:
        if recipe is None or out is None or hostfile is None:
            raise InputError("launch needs --hostfile HOSTS, a recipe, and --out RUN; or --status RUN, or --stop RUN.")
        hosts = _hosts(hostfile, include, exclude, expect_hosts, expect_slots)
        if check:
            sys.exit(_check(recipe, overrides or [], hosts, out, as_json))
        sys.exit(_train(recipe, overrides or [], hosts, out, again, accept_changed_data))


def _hosts(
    hostfile: Path, include: str | None, exclude: str | None, expect_hosts: int | None, expect_slots: int | None
) -> "tuple[Host, ...]":
    from deltalm_ds.launch.hostfile import check_expected, read_hostfile, select

    hosts = select(read_hostfile(hostfile), include, exclude)
    check_expected(hosts, expect_hosts, expect_slots)
    return hosts


def _check(recipe: Path, overrides: list[str], hosts: "tuple[Host, ...]", out: Path, as_json: bool) -> int:
    from deltalm_ds.launch.hostfile import check_addresses
    from deltalm_ds.launch.preflight.check import check
    from deltalm_ds.recipe.loading import load_recipe

    check_addresses(hosts)
    report = check(hosts, load_recipe(recipe, overrides), out, recipe)
    if as_json:
        print_json(report.as_json())
    else:
        print_table(("check", "hosts", "", "found", "next step"), report.rows(), align="lllll")
        print(f"\n{report.summary()}")
    return report.exit_code


def _train(
    recipe: Path, overrides: list[str], hosts: "tuple[Host, ...]", out: Path, again: bool, accept_changed_data: bool
) -> int:
    from deltalm_ds.launch.hostfile import check_addresses
    from deltalm_ds.launch.preflight.check import require_fit
    from deltalm_ds.launch.supervisor import Launch, goes_on, supervise
    from deltalm_ds.recipe.loading import load_recipe
    from deltalm_ds.streams import say, survive_lost_terminal
    from deltalm_ds.training.prepare import prepare_run

    survive_lost_terminal()
    loaded = load_recipe(recipe, overrides)
    if not goes_on(out):  # else what has failed since is for the supervisor to deal with
        check_addresses(hosts)
        require_fit(hosts, loaded, out, recipe)
    prepare_run(loaded, out, accept_changed_data, trains_here=False)
    code = supervise(Launch(out.absolute(), hosts, loaded.launch, again))
    if code == STOPPED_EXIT_CODE:
        say(f"stopped; the same command goes on in {out}.")
    return code


def _dry_run(
    recipe: Path | None, overrides: list[str], hosts: "tuple[Host, ...]", num_ranks: int, as_json: bool
) -> None:
    from deltalm_ds.launch.dry_run import dry_run
    from deltalm_ds.recipe.loading import load_recipe

    if recipe is None:
        raise InputError("--dry-run needs a recipe: deltalm launch --dry-run 32 RECIPE.")
    slots = sum(host.slots for host in hosts if not host.is_spare)
    if hosts and slots != num_ranks:
        raise InputError(
            f"--dry-run {num_ranks}, and the hosts have {slots} slots: give --dry-run {slots}, or leave out --hostfile."
        )
    result = dry_run(load_recipe(recipe, overrides), hosts or num_ranks)
    if as_json:
        print_json(result)
    else:
        _print_dry_run(result)


def _print_dry_run(result: dict[str, Any]) -> None:
    from deltalm_ds.launch.host_names import folded

    names, ranks = [host["name"] for host in result["hosts"]], result["ranks"]
    print(f"{result['recipe']}: {len(ranks):,} ranks on {len(names):,} hosts: {folded(names)}\n")
    shown = "RANK", "LOCAL_RANK", "CROSS_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"
    ends = ranks if len(ranks) <= MOST_RANKS_SHOWN else [*ranks[: MOST_RANKS_SHOWN - 1], ranks[-1]]
    rows = [[names[int(rank["CROSS_RANK"])], *(rank[name] for name in shown)] for rank in ends]
    print_table(("host", *shown), rows, align="lrrrll", title="environment of ranks (all of them: --json)")
    print()
    columns = ["sequences", "tokens", "micro_batches_per_rank", "largest_micro_batch_tokens"]
    columns += ["fewest_tokens_of_a_rank", "most_tokens_of_a_rank", "idle_ranks"]
    rows = [[step["step"], *(step[name] for name in columns), step["global_batch"]] for step in result["steps"]]
    names = ["step", "sequences", "tokens", "micro-batches/rank", "largest", "fewest of a rank", "most of a rank"]
    print_table((*names, "idle ranks", "global batch"), rows, align="lrrrrrrrl", title="steps as they would be dealt")
    took, slowest = result["took"], max(step["deal_seconds"] for step in result["steps"])
    print(f"\nto deal a step takes a rank up to {slowest:.3f} s")
    idle = max(step["idle_ranks"] for step in result["steps"])
    if idle:
        print(f"up to {idle:,} ranks have no sequence in a step: raise batch.tokens_per_step, or take fewer ranks")
    print(f"""\
checked: every rank has a device of its own; every sequence is on one rank, all have as many micro-batches, and none is
over the budget ({took["seconds"]:.1f} s, {size_text(took["peak_bytes"])})""")


def _write_batch_script(
    path: Path, recipe: Path | None, overrides: list[str], out: Path | None, options: list[str], submit: bool
) -> None:
    from deltalm_ds.launch.slurm import batch_file
    from deltalm_ds.recipe.loading import load_recipe

    if recipe is None or out is None:
        raise InputError("--slurm SCRIPT needs a recipe, and --out RUN.")
    load_recipe(recipe, overrides)  # what is wrong with it is told now
    batch_file.write_batch_file(path, batch_file.batch_script(recipe, out, overrides, options))
    print(batch_file.submit(path) if submit else path)


def _print_status(run: Path, as_json: bool) -> None:
    from deltalm_ds.launch.control import status

    found = status(run.absolute())
    if as_json:
        print_json(found)
        return
    ranks: list[dict[str, Any]] = found.pop("ranks")
    print_values({name: value for name, value in found.items() if value not in (None, [], {})})
    if ranks:
        names = "rank", "host", "pid", "section", "step", "since_s"
        rows = [
            [rank["rank"], rank["host"], str(rank["pid"]), rank["section"], rank["step"], round(rank["since_s"])]
            for rank in ranks
        ]
        print_table(names, rows, align="rlrlrr")


def _stop(run: Path, as_json: bool) -> None:
    from deltalm_ds.launch.control import stop

    left = stop(run.absolute())
    if as_json:
        print_json(left)
    else:
        print_values({name: why or "nothing is left" for name, why in left.items()})
    sys.exit(1 if any(left.values()) else 0)
