"""Every block of code of the pages is executed, and what it prints is what they show.

The convention, for `docs/python/*.md` and `sdk/README.md`:

- A block of `python` is run in a loop, so that `await` may stand at its top, as in
  `python -m asyncio`. It has `client`, an open client of a real server.
- Blocks have their names in common, and are run one after the other: on `how-to.md` those of a
  section (from one `##` to the next), with those before the first section before each; on other
  pages all of them.
- A block of `text` is what the block before it prints; `…` is anything. A block that prints
  something is followed by one.
- A block that begins with a comment like `# works.py` is that file; it is not run by itself.
- A block of `console` is run by a shell, where those files are: commands after `$ `, and what they
  print.
- Addresses of the pages are replaced by those of the test's servers: `http://127.0.0.1:7601`, and
  `https://orders.example.org:7601` for one with TLS that wants a token, which is in the file
  `token`; `ca.pem` is whom to trust. `http://127.0.0.1:7602` is a node that is away: the cluster
  of whoever runs this is left alone.
- A block of `toml` is only shown.

The tutorial is one shell, with a server of its own: see `test_tutorial.py`. The reference has
declarations (`py`), and nothing to be run. `testing.md` and `cli.md` have tests elsewhere.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

import ritornello
from api.security.tokens import new_token
from tests.api.security.files import entry
from tests.api.servers import Running, in_a_thread, server
from tests.sdk.docs.pages import PAGES, ROOT, Block, run, sections

ADDRESS = "http://127.0.0.1:7601"
AWAY = "http://127.0.0.1:7602"
SECURE = "https://orders.example.org:7601"
NOBODY = "http://127.0.0.1:9"
RECIPES = PAGES / "how-to.md"
STORIES = (PAGES / "delivery.md", ROOT / "sdk" / "README.md")


@dataclass(frozen=True)
class Case:
    """Blocks that belong together."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks)


def cases() -> Iterator[Case]:
    before, *recipes = sections(RECIPES)
    for section in recipes:
        if section.blocks:
            yield Case(section.title, (*before.blocks, *section.blocks))
    for path in STORIES:
        blocks = [block for section in sections(path) for block in section.blocks]
        yield Case(path.name, tuple(blocks))


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Where servers are entered, each with a loop of its own: blocks may block theirs."""
    with ExitStack() as stack:
        yield stack


def secured(directory: Path, servers: ExitStack) -> Running:
    """A server that wants a token, over TLS; with what its clients need in the current folder."""
    token, authority = new_token(), trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    Path("token").write_text(token, encoding="utf-8")
    directory.mkdir()
    made = server(directory, tokens=entry(token), authority=authority)
    return servers.enter_context(in_a_thread(made))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.title)
async def test_a_page_does_what_it_says(
    case: Case, servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    node = servers.enter_context(in_a_thread(server(tmp_path / "data")))
    changes = {ADDRESS: node.url, AWAY: NOBODY}
    if SECURE in case.text:
        changes[SECURE] = secured(tmp_path / "secured", servers).url
    async with ritornello.Client(node.url) as client:
        names: dict[str, object] = {"__name__": "__main__", "client": client}
        await run(case.blocks, names, changes)


def test_pages_have_only_blocks_that_the_convention_knows() -> None:
    for path in (RECIPES, *STORIES, PAGES / "tutorial.md"):
        for section in sections(path):
            for block in section.blocks:
                assert block.language in {"python", "text", "console", "toml"}, block.place
