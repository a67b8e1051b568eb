"""The command `dynbench`: one thin file per command. `dynbench --help` imports neither torch, pandas nor matplotlib."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

import click

from dynbench.cli import (
    advise,
    calibrate,
    check,
    compare,
    compile,
    convert,
    cost,
    doctor,
    export,
    history,
    partition,
    report,
    reproduce,
    run,
    search,
    show,
    trace,
    train,
    verify,
    whatif,
)
from dynbench.cli.common import echo, silence_stdout
from dynbench.errors import DynbenchError, UserError
from dynbench.escape import terminal
from dynbench.version import __version__

__all__ = ["main"]

INTERRUPTED = 130  # exit code after Ctrl-C
LONGEST = 1000  # characters of a message
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # in an error of torch, which has no class for it on a CPU


class _Failure(click.ClickException):
    """Ends the command with exit code 1 and one sentence on stderr."""

    def __init__(self, error: DynbenchError) -> None:
        super().__init__(shortened(terminal(" ".join(str(error).split()))))


def shortened(text: str) -> str:
    """A message that repeats a value from a file may be as long as the file."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class _Refusal(_Failure):
    """The same with exit code 2, for an error that the user can correct."""

    exit_code = 2


@contextlib.contextmanager
def _system_explained() -> Iterator[None]:
    """Says in one sentence that standard output is full, or that the folder is gone in which the command was started.

    What reads and writes files says itself which could not be read or written.
    """
    try:
        yield
    except OSError as e:
        if not _has_folder():
            raise _Refusal(UserError("the current folder was removed; change to one that is there")) from e
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        silence_stdout()
        raise _Refusal(UserError(f"cannot write: {e.strerror}")) from e


def _has_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


class _Commands(click.Group):
    """Reports a user's error in one sentence, without usage and without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which a new user needs them

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "" in args and not ctx.resilient_parsing:  # `--out "$OUT"` would write into the current folder
            raise _Refusal(UserError("an argument is empty; is a variable of the shell not set?"))
        for arg in args:  # results name them, in files whose text is UTF-8
            if not arg.isascii() and arg != arg.encode("utf-8", "replace").decode():
                raise _Refusal(UserError(f"{arg!r} is not UTF-8; rename that file or folder"))
        with _system_explained():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _system_explained():
                return super().invoke(ctx)
        except UserError as e:
            raise _Refusal(e) from e
        except DynbenchError as e:
            raise _Failure(e) from e
        except (MemoryError, RuntimeError) as e:
            if not isinstance(e, MemoryError) and not any(words in str(e) for words in OUT_OF_MEMORY):
                raise
            first = (str(e).splitlines() or [""])[0]
            raise _Refusal(UserError(f"this needs more memory than there is: {first or 'no more could be had'}")) from e
        except click.UsageError as e:
            e.ctx = None
            raise
        except KeyboardInterrupt:
            echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dynbench")
def main() -> None:
    """Does the computation that a dynamic neural network saves turn into time and energy saved?

    Begin with `dynbench run`: it measures three models on this machine's CPU and writes a report.
    """


for module in (
    run,
    show,
    cost,
    partition,
    search,
    verify,
    compile,
    convert,
    doctor,
    calibrate,
    train,
    report,
    whatif,
    advise,
    trace,
    check,
    compare,
    reproduce,
    history,
    export,
):
    main.add_command(module.command)
