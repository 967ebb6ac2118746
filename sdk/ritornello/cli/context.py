"""Clusters by name."""

from pathlib import Path

import click

from ritornello.cli import contexts, output
from ritornello.cli.calling import Given, utf8
from ritornello.core.nodes import node_urls


@click.group()
def context() -> None:
    """Keep clusters by name, so that -c NAME is enough.

    \b
    Examples:
      ritornello context set live --url https://a.example:7601 --token-file ~/.token
      ritornello -c live status
    """


@context.command("list")
@click.pass_obj
def list_contexts(given: Given) -> None:
    """List them; the current one has a star.

    \b
    Example:
      ritornello context list
    """
    found = contexts.load(given.path)
    if given.is_json:
        for name, one in sorted(found.known.items()):
            is_current = name == found.current
            output.say_json({"name": name, "urls": one.urls, "is_current": is_current})
        return
    rows = [
        ("*" if name == found.current else "", name, ",".join(one.urls), one.token_file)
        for name, one in sorted(found.known.items())
    ]
    output.table(("", "name", "urls", "token file"), rows)


@context.command("set")
@click.argument("name", callback=utf8)
@click.option("--url", "urls", multiple=True, required=True, help="A node; once for each.")
@click.option("--token-file", callback=utf8, help="The file that holds its token.")
@click.option(
    "--ca-file", callback=utf8, help="Certificates to trust, if not those that the machine does."
)
@click.pass_obj
def set_context(
    given: Given, name: str, urls: tuple[str, ...], token_file: str | None, ca_file: str | None
) -> None:
    """Keep a cluster under a name. The first one becomes the current one.

    \b
    Example:
      ritornello context set local --url http://127.0.0.1:7601
    """
    if not name:
        raise click.UsageError("a context has a name")
    found = contexts.load(given.path)
    files = (_from_anywhere(token_file), _from_anywhere(ca_file))
    found.known[name] = contexts.Context(node_urls(urls), *files)
    found.current = found.current or name
    found.save()


@context.command()
@click.argument("name")
@click.pass_obj
def use(given: Given, name: str) -> None:
    """Make one the current one.

    \b
    Example:
      ritornello context use live
    """
    found = contexts.load(given.path)
    found.get(name)
    found.current = name
    found.save()


@context.command()
@click.argument("name")
@click.pass_obj
def remove(given: Given, name: str) -> None:
    """Forget one.

    \b
    Example:
      ritornello context remove live
    """
    found = contexts.load(given.path)
    found.get(name)
    del found.known[name]
    if found.current == name:
        found.current = None
    found.save()


def _from_anywhere(path: str | None) -> str | None:
    """A path that means the same file wherever the command is run."""
    return path if path is None or path.startswith("~") else str(Path(path).absolute())
