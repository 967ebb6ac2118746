"""Shell completion."""

import click
from click.shell_completion import get_completion_class

from ritornello.cli import output

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_RITORNELLO_COMPLETE"  # as click has it


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Say the script with which a shell completes this command.

    \b
    Examples:
      ritornello completion bash > ~/.local/share/bash-completion/completions/ritornello
      ritornello completion fish > ~/.config/fish/completions/ritornello.fish
    """
    found = get_completion_class(shell)
    root = ctx.find_root()
    if found is None:  # all of `SHELLS` are known to click
        raise click.UsageError(f"there is none for {shell}")
    output.say(found(root.command, {}, "ritornello", VARIABLE).source())
