"""The table as flags of a command.

    @click.command(cls=SettingsCommand)
    @settings_options()
    def serve(**given): ...
        settings = build(read_flags(given))

A command that needs less gives the groups that it takes. Flags hand over text as it was written:
what it means is decided in one place for all sources.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from api.settings.kinds import in_words, to_text
from api.settings.sources import CONFIG_VARIABLE, Reading, read_sources
from api.settings.table import GROUPS, TABLE, Kind, Setting

_Function = TypeVar("_Function", bound=Callable[..., Any])

_METAVARS = {
    Kind.INTEGER: "NUMBER",
    Kind.TEXT: "TEXT",
    Kind.TEXTS: "TEXT,...",
    Kind.PATH: "PATH",
    Kind.ADDRESS: "HOST:PORT",
    Kind.PEERS: "ID=HOST:PORT,...",
}


class SettingOption(click.Option):
    """The flag of one setting."""

    def __init__(self, param_decls: Sequence[str], *, setting: Setting, **attributes: Any) -> None:  # noqa: ANN401 - as click has it
        super().__init__(param_decls, help=setting.help, **attributes)
        self.setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Say the default and the variable as well."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        setting = self.setting
        return record[0], f"{setting.help}  [{default_text(setting)}; {setting.variable}]"


class SettingsCommand(click.Command):
    """A command whose help shows the settings by their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then a section for each group."""
        records: dict[str, list[tuple[str, str]]] = {"": [], **{group: [] for group in GROUPS}}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                setting = getattr(parameter, "setting", None)
                records[setting.group if setting is not None else ""].append(record)
        for group, lines in records.items():
            if lines:
                title = f"[{group}] {GROUPS[group].rstrip('.')}" if group else "Options"
                with formatter.section(title):
                    formatter.write_dl(lines)


def _option(setting: Setting) -> Callable[[_Function], _Function]:
    if setting.kind is Kind.BOOLEAN:
        names = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.option(
            names, setting.parameter, cls=SettingOption, setting=setting, default=None
        )
    metavar = _METAVARS.get(setting.kind) or "|".join(setting.choices)
    return click.option(
        setting.flag, setting.parameter, cls=SettingOption, setting=setting, metavar=metavar
    )


def settings_options(groups: Iterable[str] = GROUPS) -> Callable[[_Function], _Function]:
    """Give a command the flags of these groups, and `--config`."""
    chosen = frozenset(groups)

    def decorate(function: _Function) -> _Function:
        # A decorator's option comes before those that were there: so from the last to the first.
        for setting in reversed(TABLE):
            if setting.group in chosen:
                function = _option(setting)(function)
        return click.option(
            "--config",
            metavar="FILE",
            envvar=CONFIG_VARIABLE,
            show_envvar=True,
            help="A TOML file with settings; flags and variables go before it.",
        )(function)

    return decorate


def read_flags(given: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Reading:
    """Read all sources: what the flags of `settings_options` gave, the environment, the file."""
    flags = dict(given)
    config = flags.pop("config")
    return read_sources(
        flags, os.environ if environment is None else environment, Path(config) if config else None
    )


def default_text(setting: Setting) -> str:
    """The default for a reader: `default: 1048576 (1 MiB)`."""
    if setting.default_says:
        return f"default: {setting.default_says}"
    if setting.kind is Kind.INTEGER and isinstance(setting.default, int):
        return f"default: {in_words(setting, setting.default)}"
    return f"default: {to_text(setting.default) or 'none'}"
