"""The command `ritornello-server`.

Each command lives in a module of its own, which is loaded when it is needed. To add one: write a
module with a click command, and name it in `COMMANDS`.
"""

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

import click

from api import logs
from api.settings import (
    GROUPS,
    SETTINGS,
    Reading,
    ServerSettings,
    SettingsCommand,
    SettingsProblems,
    build,
    read_flags,
    settings_options,
)
from api.settings.kinds import to_toml
from api.statuses import ExitStatus

_log = logging.getLogger("api.main")  # also when it is run as a script

# Commands by their names: where they are.
COMMANDS: Mapping[str, str] = {
    "serve": "api.main:serve",
    "dev": "api.commands.dev:dev",
    "check-config": "api.main:check_config",
    "backup": "api.commands.backup:backup",
    "restore": "api.commands.restore:restore",
    "recover": "api.commands.recover:recover",
    "new-token": "api.security.command:new_token_command",
}

_COMMENT_COLUMN_MAX = 48

_DISTRIBUTION = "ritornello-server"


class LazyGroup(click.Group):
    """Loads the commands that are asked for, and no others."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=_DISTRIBUTION, prog_name=_DISTRIBUTION)
def main() -> None:
    """Keep sessions: work that is done by one operator at a time, and is never forgotten."""


@click.command("serve", cls=SettingsCommand)
@settings_options()
def serve(**given: Any) -> None:  # noqa: ANN401 - a flag for each setting
    """Run one node with its front end, until SIGTERM or SIGINT.

    Without any setting it is a whole cluster of one node, as durable as any, for this machine only.
    """
    settings = settings_or_exit(read_flags(given))
    operation = settings.operation
    logs.configure(operation.log_format, operation.log_level, settings.node.node_id)
    for warning in settings.warnings:
        _log.warning(warning)
    sys.exit(_run(settings))


def _run(settings: ServerSettings) -> int:
    """Serve, and see to it that nothing ends the process without a line in the log."""
    try:
        from api.server import serve as run  # noqa: PLC0415 - no other command needs it

        return run(settings)
    except KeyboardInterrupt:  # before there was anything to leave in order
        return ExitStatus.STOPPED
    except Exception:  # noqa: BLE001 - of whatever it was the log has the details
        _log.critical("the server has failed", exc_info=True)
        return ExitStatus.UNEXPECTED


@click.command("check-config", cls=SettingsCommand)
@settings_options()
def check_config(**given: Any) -> None:  # noqa: ANN401 - a flag for each setting
    """Say what is wrong with settings, or which they are and where each comes from.

    Takes the flags of `serve`. What it prints can be used as a file for --config.
    """
    reading = read_flags(given)
    settings = settings_or_exit(reading)
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(effective(reading), nl=False)


def settings_or_exit(reading: Reading) -> ServerSettings:
    """The settings; or all that is wrong with them on standard error, and the end."""
    try:
        return build(reading)
    except SettingsProblems as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(ExitStatus.SETTINGS)


def effective(reading: Reading) -> str:
    """All values as a TOML file, with their sources as comments. Of secrets the paths alone."""
    sections = []
    for group in GROUPS:
        lines = [
            (f"{SETTINGS[name].name} = {to_toml(found.value)}", found.origin)
            for name, found in reading.values.items()
            if SETTINGS[name].group == group
        ]
        width = min(max(len(line) for line, _ in lines), _COMMENT_COLUMN_MAX)
        rows = [f"{line:{width}}  # {origin}\n" for line, origin in lines]
        sections.append(f"[{group}]\n{''.join(rows)}")
    return "\n".join(sections)


if __name__ == "__main__":
    main()
