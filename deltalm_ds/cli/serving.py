"""`deltalm serve`: models behind HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from deltalm_ds.cli.options import Device, Dtype, EngineName, Threads
from deltalm_ds.errors import InputError


def serve(
    models: Annotated[
        list[str], typer.Argument(help="Model directories or exports, also as NAME=DIRECTORY.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="The address to listen at; by default only this machine is.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 5000,
    api_keys: Annotated[Path | None, typer.Option(help="A file of API keys, one a line; then one is needed.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Let others than this machine in without a key.")] = False,
    beam: Annotated[int, typer.Option(help="Beams where a request names none; 1 is greedy.")] = 5,
    max_characters: Annotated[int, typer.Option(help="Of all texts of a request.")] = 100_000,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused.")] = 1_000,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take, waiting included.")] = 60.0,
    cache: Annotated[int, typer.Option(min=0, help="Sentences whose translations a model keeps.")] = 10_000,
    engine: EngineName = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = 0,
) -> None:
    """Serve models: a page, a JSON API and LibreTranslate's API. SIGTERM stops it, SIGHUP loads the models anew.

    Example: deltalm serve models/cldr --port 5000
    """
    try:
        from deltalm_ds.serving.limits import ApiKeys, Limits
        from deltalm_ds.serving.server import is_loopback, listen
        from deltalm_ds.serving.server import serve as answer
        from deltalm_ds.serving.service import Service
    except ModuleNotFoundError as error:
        raise InputError(f"The server needs the package {error.name}: pip install 'deltalm-ds[serve]'.") from None

    if not (is_loopback(host) or api_keys or open):
        raise InputError(f"Whoever reaches {host} could use the models: give --api-keys FILE, or --open to let them.")
    limits, keys = Limits(max_characters, queue, timeout, beam), ApiKeys(api_keys)
    listener = listen(host, port)
    runs_on = {"engine": engine, "device": device, "dtype": dtype, "threads": threads}
    service = Service(models, limits, keys, runs_on, cache)
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(f"{model.name} ({model.engine_name})" for model in service.models)
    greeting = f"{names} at http://{shown}:{listener.getsockname()[1]}"
    answer(service, listener, is_loopback(host) and not (api_keys or open), greeting)
