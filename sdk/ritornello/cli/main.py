"""The command `ritornello`, its options, and with what status it ends.

0    done
1    the cluster has refused it, or a defect
2    usage: arguments or the file of contexts
3    there is no such session
4    not possible now: the key is held, the phase or the revision is another, the lease is lost
5    no node answers in time
6    the token is not known, or not for this
130  interrupted
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from ritornello import errors
from ritornello.cli import INTERRUPTED, contexts
from ritornello.cli.calling import FiniteRange, Given

STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.SessionNotFound, 3),
    (errors.LeaseLost, 4),
    (errors.WrongPhase, 4),
    (errors.RevisionMismatch, 4),
    (errors.KeyConflict, 4),
    (errors.TxnAborted, 4),
    (errors.DeadlineExceeded, 5),
    (errors.NotConnected, 5),
    (errors.Unauthenticated, 6),
    (errors.Forbidden, 6),
    (errors.BadRequest, 2),
    (errors.RitornelloError, 1),
    (contexts.ContextError, 2),
    (OSError, 1),
    (ValueError, 2),
)

# Commands by their names: where they are. Each is loaded when it is needed.
COMMANDS: Mapping[str, str] = {
    "status": "cluster:status",
    "themes": "cluster:themes",
    "transfer": "cluster:transfer",
    "sessions": "sessions:sessions",
    "new": "sessions:new",
    "tail": "events:tail",
    "top": "top:top",
    "work": "work:work",
    "bench": "bench:bench",
    "context": "context:context",
    "completion": "completion:completion",
}


class Command(click.Group):
    """Ends with the status that says what went wrong, and one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """One of them."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        found: click.Command = getattr(import_module(f"ritornello.cli.{module}"), name)
        return found

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's
        """As click has it; but whoever has read enough, `head` say, may go away."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _write_no_more()
            return 0

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - click's
        """As click has it."""
        kwargs["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.ClickException as error:
            self._helped(error).show()
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(INTERRUPTED)
        except tuple(kind for kind, _ in STATUSES) as error:
            _write_no_more()
            sys.stderr.write(f"ritornello: {error}\n")
            sys.exit(next(status for kind, status in STATUSES if isinstance(error, kind)))

    def _helped(self, error: click.ClickException) -> click.ClickException:
        """An error; of an option that stands after a command and not before it, with advice."""
        if not isinstance(error, click.NoSuchOption):
            return error
        name = error.option_name
        if not any(name in one.opts for one in self.params):
            return error
        return click.UsageError(
            f"{name} stands before the command: ritornello {name} ...", error.ctx
        )


def _write_no_more() -> None:
    """Have what is still to be written forgotten at the end, and not fail once more."""
    with contextlib.suppress(OSError):  # it is no file, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    "urls",
    multiple=True,
    envvar="RITORNELLO_URL",
    help="A node; more than once, or several with commas, for a cluster. [env: RITORNELLO_URL]",
)
@click.option("-c", "--context", help="A cluster by its name: see `ritornello context`.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="The file that holds a token. A token itself: [env: RITORNELLO_TOKEN]",
)
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False),
    help="Certificates to trust, if not those that the machine does. [env: RITORNELLO_CA_FILE]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=FiniteRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each call, with all that is tried in it.",
)
@click.option("--json", "is_json", is_flag=True, help="Say each thing as one line of JSON.")
@click.version_option(package_name="ritornello", prog_name="ritornello")
@click.pass_context
def ritornello(
    ctx: click.Context,
    urls: tuple[str, ...],
    context: str | None,
    token_file: str | None,
    ca_file: str | None,
    timeout_s: float,
    is_json: bool,  # noqa: FBT001 - a flag
) -> None:
    """Look at a cluster of sessions, and work with it.

    \b
    Examples:
      ritornello status
      ritornello new 7 --key order-1 --data 'ship it'
      ritornello sessions list 7 --phase parked
      ritornello --json tail --theme 7
      ritornello work 7 -- ./deliver.sh
      ritornello bench --sessions 64

    \b
    It ends with status
      0    done
      1    the cluster has refused it, or a defect
      2    arguments that make no sense, or the file of contexts does not
      3    there is no such session
      4    not possible now: the key is held, or the phase or the revision is another
      5    no node answers in time
      6    the token is not known, or not for this
      130  interrupted
    """
    if context is not None and ctx.get_parameter_source("urls") is ParameterSource.ENVIRONMENT:
        urls = ()  # the cluster that is named here is meant, not that of the variable
    nodes = tuple(part for one in urls for part in one.split(",") if part)
    if urls and not nodes:
        # Say, of an unset variable. Another cluster than was meant would be worse than none.
        raise click.UsageError("--url is empty; name a node, such as http://127.0.0.1:7601")
    ctx.obj = Given(
        nodes, context, token_file, ca_file, timeout_s, is_json, contexts.default_path()
    )
