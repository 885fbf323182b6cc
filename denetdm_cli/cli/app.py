"""The commands. Each gathers its options, calls the core and shows the result; heavy imports wait until then."""

import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from denetdm_cli import __version__
from denetdm_cli.cli import configs, data, evaluate, hub, report, train
from denetdm_cli.cli.options import Program, QuietOption, VerboseOption
from denetdm_cli.utils import log, signals
from denetdm_cli.utils.cpu import limit_library_threads
from denetdm_cli.utils.errors import UserError, from_os_error

app = typer.Typer(
    name="denetdm",
    cls=Program,
    help="Train image classifiers that do not lean on shortcuts, without bias labels (DeNetDM, NeurIPS 2024).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Run the program; a user's mistake ends in two lines and the exit code of its kind, never in a traceback."""
    log.reset()
    limit_library_threads()
    code = _run()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # one of several ranks
        # DistributedDataParallel leaves threads of its process group behind for good. They can abort the process while
        # the interpreter takes itself down, so that is skipped.
        with suppress(OSError):  # a pipe that nobody reads any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    """Run the command that was asked for and return the exit code."""
    try:
        with signals.handlers():
            _call()
    except SystemExit as end:
        stop = _stop_behind(end)
        return int(end.code or 0) if stop is None else _stopped(stop)
    except KeyboardInterrupt as stop:  # outside typer
        return _stopped(stop)
    except UserError as error:
        return _failed(error)
    except OSError as error:
        for line in traceback.format_exc().splitlines():
            log.debug(line)
        return _failed(from_os_error(error))
    return 0


def _call() -> None:
    """Run the command; a signal in the middle of an import may turn into any error, and is a stop all the same."""
    try:
        app(prog_name="denetdm")
    except Exception as error:
        stop = signals.last_raised()
        if stop is None or isinstance(error, UserError):
            raise
        for line in traceback.format_exc().splitlines():
            log.debug(line)
        raise stop from None


def _stop_behind(end: SystemExit) -> KeyboardInterrupt | None:
    """What stopped the program, which typer takes for Ctrl-C whatever it was."""
    stop = None if end.__context__ is None else end.__context__.__cause__
    return stop if isinstance(stop, KeyboardInterrupt) else None


def _stopped(stop: KeyboardInterrupt) -> int:
    if isinstance(stop, signals.Stopped) and not stop.reported:
        log.info(f"stopped by {stop}", always=True)
    return signals.exit_code(stop)


def _failed(error: UserError) -> int:
    if not error.reported:
        log.show_error(error)
    return error.exit_code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denetdm {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    pass


for _commands in (data, train, evaluate, hub, report, configs):
    _commands.register(app)
