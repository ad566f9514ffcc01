"""The `edgediff` command. Results on stdout, progress on stderr; exit status 0, 1, 2 or 130.

Heavy modules are imported inside the commands, so that `edgediff --help` is fast.
"""

import contextlib
import io
import os
import sys

import click

from edgediff._version import __version__
from edgediff.cli.bench import bench
from edgediff.cli.generate import generate
from edgediff.cli.inspect import info, providers, verify
from edgediff.cli.push import push
from edgediff.errors import EdgediffError, InputError, first_line, printable


def main() -> None:
    """Run the command line; an expected failure is one line on stderr and an exit status."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # show ? for characters that the console lacks
            stream.reconfigure(errors="replace")
    try:
        status = edgediff.main(standalone_mode=False)
    except click.ClickException as e:
        shown = io.StringIO()
        e.show(shown)
        click.echo(printable(shown.getvalue()), err=True, nl=False)
        status = e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nInterrupted; no incomplete file was left behind.", err=True)
        status = 130
    except InputError as e:
        click.echo(f"Error: {printable(str(e))}", err=True)
        status = 2
    except EdgediffError as e:
        click.echo(f"Error: {printable(str(e))}", err=True)
        status = 1
    except MemoryError:
        click.echo(
            "Error: memory ran out: raise the limit of this process, or give a smaller --size or a"
            " smaller bundle",
            err=True,
        )
        status = 1
    except ImportError as e:  # a library that memory, or a limit of open files, does not admit
        click.echo(f"Error: {e.name or 'a module'} cannot be loaded: {first_line(e)}", err=True)
        status = 1
    except BrokenPipeError:
        if sys.stderr is not None:
            sys.stderr.close()
        status = 1
    except OSError as e:
        click.echo(f"Error: the output cannot be written ({e.strerror or e})", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _open_streams() -> None:
    """Let stdin, stdout and stderr exist if they were closed (`2>&-`): the next file to be
    opened would get the number of one, and a library's output to stderr."""
    with contextlib.suppress(OSError):
        number = os.open(os.devnull, os.O_RDWR)
        while number <= 2:
            number = os.dup(number)
        os.close(number)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgediff")
def edgediff() -> None:
    """Text-to-image diffusion on edge devices: export a pipeline once, generate images anywhere."""


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export(arguments: tuple[str, ...]) -> int | None:
    """Export a diffusers pipeline (needs edgediff[export])."""
    import importlib.metadata

    # Found by entry point: the runtime never imports the export stage by name.
    entries = importlib.metadata.entry_points(group="edgediff.commands", name="export")
    if not entries:  # a packaged app, or a copy that was not installed
        raise click.ClickException(
            "this copy of edgediff was packaged without its export stage: use one that pip"
            ' installed, by pip install "edgediff[export]"'
        )
    entry = next(iter(entries))
    try:
        command = entry.load()
        status: int | None = command.main(
            args=list(arguments), prog_name="edgediff export", standalone_mode=False
        )
    except ModuleNotFoundError as e:
        raise click.ClickException(
            f'`edgediff export` needs {e.name}: pip install "edgediff[export]"'
        ) from e
    return status


for _command in (generate, info, verify, providers, bench, export, push):
    edgediff.add_command(_command)
