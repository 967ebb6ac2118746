"""A backup is whole, checked and durable when it has its name, and not before."""

import asyncio
import json
import sqlite3
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import trustme
from aiohttp import web

from api.commands.backup import SNAPSHOT
from api.commands.disk import read_checkpoint
from api.dev import LocalCluster
from api.statuses import ExitStatus
from cluster import Node
from state.operations import New
from tests.api.commands.disks import LONG, OLD, alone, contents, die, grow, names, run

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]

SMALL = ("--journal-segment-bytes", "1048576")
TOKEN = "rit_abc"  # noqa: S105 - not one that opens anything


@pytest.fixture
async def old(tmp_path: Path) -> Path:
    await grow(tmp_path / "old")
    return tmp_path / "old"


@asynccontextmanager
async def serving(serve: Serve, context: ssl.SSLContext | None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(SNAPSHOT, serve)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http{'' if context is None else 's'}://localhost:{port}"
    finally:
        await runner.cleanup()


@contextmanager
def node(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """What stands in the place of a node, on a loop in another thread: commands have their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = serving(serve, context)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def file_server(path: Path) -> Serve:
    async def serve(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            problem = {"code": "unauthenticated"}
            return web.json_response(problem, status=401, content_type="application/problem+json")
        return web.FileResponse(path)

    return serve


def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n", encoding="utf-8")
    return path


# From a node that runs


async def test_a_node_s_snapshot_is_kept(tmp_path: Path, old: Path) -> None:
    output = tmp_path / "backup.db"
    words = ("--token-file", token_file(tmp_path), "--output", output)
    with node(file_server(old / "state.db")) as url:
        result = await asyncio.to_thread(run, "backup", "--url", url, *words)
    assert result.exit_code == ExitStatus.STOPPED, result.output
    assert result.stdout.startswith(f"{output}: 12 sessions of cluster {OLD} as of entry ")
    assert result.stderr == ""  # progress is for terminals
    assert read_checkpoint(output).machine.session_count == 12
    assert output.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(output)) as connection:
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (12,)
    assert names(tmp_path) == ["backup.db", "old", "token"]


async def test_a_running_cluster_becomes_another(tmp_path: Path) -> None:
    """All of it with real processes: three nodes, a backup of one, three others out of it."""
    output = tmp_path / "backup.db"
    async with LocalCluster(tmp_path / "old", http_port=0, arguments=SMALL) as cluster:
        await cluster.wait_until_ready()
        for number, url in enumerate(cluster.urls):
            for key in (f"a-{number}", f"b-{number}"):
                await asyncio.to_thread(post, f"{url}/v1/themes/7/sessions?key={key}", b"x")
        words = ("--url", cluster.urls[1], "--output", output)
        result = await asyncio.to_thread(run, "backup", *words)
    assert result.exit_code == ExitStatus.STOPPED, result.output
    assert "6 sessions of cluster ritornello-dev" in result.stdout
    for name in cluster.nodes:
        target = tmp_path / "new" / name
        restore = ("restore", "--from", output, "--data-directory", target, "--node-id", name)
        assert run(*restore, "--cluster-id", "another").exit_code == ExitStatus.STOPPED
    async with LocalCluster(
        tmp_path / "new", http_port=0, cluster_id="another", arguments=SMALL
    ) as cluster:
        await cluster.wait_until_ready()
        for url in cluster.urls:
            themes = await asyncio.to_thread(get, f"{url}/v1/themes")
            # They were being worked on when the backup was made.
            assert [(one["theme"], one["ready"]) for one in themes["themes"]] == [(7, 6)]
            acquired = await asyncio.to_thread(post, f"{url}/v1/acquire?themes=7&wait=5", b"")
            (session,) = acquired["sessions"]
            assert session["attempts"] == 1
            give_back = f"{url}/v1/sessions/{session['id']}/store?repeat_after=0"
            await asyncio.to_thread(post, give_back, b"", session["epoch"])


def post(url: str, body: bytes, epoch: int | None = None) -> Any:
    headers = {} if epoch is None else {"Ritornello-Epoch": str(epoch)}
    request = Request(url, body, {"Content-Type": "text/plain", **headers})  # noqa: S310 - http
    with urlopen(request, timeout=20) as response:  # noqa: S310
        return json.load(response)


def get(url: str) -> Any:
    with urlopen(url, timeout=20) as response:  # noqa: S310 - http
        return json.load(response)


async def test_the_system_s_authorities_are_not_enough(tmp_path: Path, old: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    output = tmp_path / "backup.db"
    words: tuple[str | Path, ...] = ("--token-file", token_file(tmp_path), "--output", output)
    with node(file_server(old / "state.db"), context) as url:
        refused = await asyncio.to_thread(run, "backup", "--url", url, *words)
        words += ("--authority-file", tmp_path / "authority.pem")
        taken = await asyncio.to_thread(run, "backup", "--url", url, *words)
    assert refused.exit_code == ExitStatus.UNEXPECTED
    assert f"{url} is not trusted: " in refused.stderr
    assert "certificate verify failed" in refused.stderr
    assert taken.exit_code == ExitStatus.STOPPED, taken.output


async def test_a_refusal_is_told(tmp_path: Path, old: Path) -> None:
    output = tmp_path / "backup.db"
    with node(file_server(old / "state.db")) as url:
        result = await asyncio.to_thread(run, "backup", "--url", url, "--output", output)
    assert result.exit_code == ExitStatus.UNEXPECTED
    assert "answers 401 Unauthorized" in result.stderr
    assert "unauthenticated" in result.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:7601", "write http://127.0.0.1:7601 or https://127.0.0.1:7601"),
        ("nonsense", "write http://nonsense or https://nonsense"),
        ("ftp://x", "write one such as http://127.0.0.1:7601"),
        ("http://", "write one such as http://127.0.0.1:7601"),
        ("http://[::1", "write one such as http://127.0.0.1:7601"),
        ("http://localhost:99999", "write one such as http://127.0.0.1:7601"),
    ],
)
def test_a_url_that_is_none_is_told_what_to_write(tmp_path: Path, url: str, says: str) -> None:
    result = run("backup", "--url", url, "--output", tmp_path / "backup.db")
    assert result.exit_code == ExitStatus.SETTINGS
    assert f"--url {url} " in result.stderr
    assert says in result.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_node_that_is_not_there_is_told(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}://localhost:1"
    result = run("backup", "--url", url, "--output", tmp_path / "backup.db")
    assert result.exit_code == ExitStatus.UNEXPECTED
    assert result.stderr == f"error: {url} cannot be reached: Connection refused\n"
    assert names(tmp_path) == []


async def test_a_node_that_speaks_no_tls_is_told(tmp_path: Path, old: Path) -> None:
    with node(file_server(old / "state.db")) as url:
        words = ("--url", url.replace("http:", "https:"), "--output", tmp_path / "backup.db")
        result = await asyncio.to_thread(run, "backup", *words)
    assert result.exit_code == ExitStatus.UNEXPECTED
    assert "cannot be reached: [SSL" in result.stderr
    assert " object at " not in result.stderr


async def test_a_token_goes_to_nobody_else(tmp_path: Path) -> None:
    async def serve(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://127.0.0.1:1/elsewhere")

    words = ("--token-file", token_file(tmp_path), "--output", tmp_path / "backup.db")
    with node(serve) as url:
        result = await asyncio.to_thread(run, "backup", "--url", url, *words)
    assert result.exit_code == ExitStatus.UNEXPECTED
    assert "answers 302" in result.stderr
    assert TOKEN not in result.output


async def test_what_is_damaged_or_cut_off_gets_no_name(tmp_path: Path, old: Path) -> None:
    content = bytearray(await asyncio.to_thread((old / "state.db").read_bytes))
    content[content.find(b"data-3")] ^= 1

    async def damaged(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(content))

    async def cut_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(bytes(content[:5000]))
        assert request.transport is not None
        request.transport.close()
        return response

    for serve, status in ((damaged, ExitStatus.DISK), (cut_off, ExitStatus.UNEXPECTED)):
        output = tmp_path / "backup.db"
        with node(serve) as url:
            result = await asyncio.to_thread(run, "backup", "--url", url, "--output", output)
        assert result.exit_code == status, result.output
        assert names(tmp_path) == ["old"]


# From a disk


def test_a_stopped_node_s_disk(tmp_path: Path, old: Path) -> None:
    before = contents(old)
    output = tmp_path / "backup.db"
    result = run("backup", "--data-directory", old, "--output", output)
    assert result.exit_code == ExitStatus.STOPPED, result.output
    was, made = read_checkpoint(old / "state.db"), read_checkpoint(output)
    assert made.machine.digest() == was.machine.digest()
    assert made.summary[:2] == was.summary[:2]
    assert contents(old) == before


async def test_entries_that_are_not_known_to_be_committed_are_told_of(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    one = Node(alone(directory, replica=LONG))
    async with one:
        await one.wait_until_ready()
        for number in range(5):
            await one.submit(New(7, b"%d" % number, repeat_after_ms=0))
        die(one)
    outputs = [tmp_path / "committed.db", tmp_path / "all.db"]
    result = run("backup", "--data-directory", directory, "--output", outputs[0])
    assert result.exit_code == ExitStatus.STOPPED, result.output
    assert "--uncommitted" in result.stderr
    words = ("--data-directory", directory, "--uncommitted", "--output", outputs[1])
    result = run("backup", *words)
    assert result.exit_code == ExitStatus.STOPPED, result.output
    assert result.stderr == ""
    counts = [read_checkpoint(one).machine.session_count for one in outputs]
    assert counts[0] < counts[1] == 5


# What is asked for


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path, old: Path) -> None:
    output = tmp_path / "backup.db"
    output.write_text("precious", encoding="utf-8")
    words = ("backup", "--data-directory", old, "--output", output)
    assert run(*words).exit_code == ExitStatus.SETTINGS
    assert output.read_text(encoding="utf-8") == "precious"
    assert run(*words, "--force").exit_code == ExitStatus.STOPPED
    assert read_checkpoint(output).machine.session_count == 12


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--url", "http://x", "--data-directory", "y"),
        ("--data-directory", "y", "--token-file", "z"),
        ("--url", "http://x", "--uncommitted"),
        ("--url", "http://x", "--authority-file", __file__),
    ],
)
def test_one_source_and_what_belongs_to_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run("backup", *words, "--output", tmp_path / "backup.db")
    assert result.exit_code == ExitStatus.SETTINGS


@pytest.mark.parametrize("content", ["", "two words", "line\nline"])
def test_a_token_file_holds_a_token(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    words = ("--url", "http://127.0.0.1:1", "--token-file", path)
    result = run("backup", *words, "--output", tmp_path / "backup.db")
    assert result.exit_code == ExitStatus.SETTINGS
    assert f"--token-file {path} " in result.stderr


@pytest.mark.parametrize("flag", ["--token-file", "--authority-file"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, flag: str) -> None:
    words = ("--url", "https://127.0.0.1:1", flag, "gone", "--output", tmp_path / "backup.db")
    result = run("backup", *words)
    assert result.exit_code == ExitStatus.SETTINGS
    assert f"{flag}'" in result.stderr
    assert "'gone' does not exist" in result.stderr


def test_a_file_without_an_authority_is_named(tmp_path: Path) -> None:
    words = ("--url", "https://127.0.0.1:1", "--authority-file", __file__)
    result = run("backup", *words, "--output", tmp_path / "backup.db")
    assert result.exit_code == ExitStatus.SETTINGS
    assert f"--authority-file {__file__} has no certificate in PEM" in result.stderr


@pytest.mark.parametrize("name", ["gone", "file"])
def test_a_place_for_no_file_is_named(tmp_path: Path, old: Path, name: str) -> None:
    (tmp_path / "file").touch()
    words = ("--data-directory", old, "--output", tmp_path / name / "backup.db")
    result = run("backup", *words)
    assert result.exit_code == ExitStatus.SETTINGS
    assert f"no file can be made in {tmp_path / name}; write another --output" in result.stderr
    assert names(tmp_path) == ["file", "old"]


def test_help_says_what_it_does() -> None:
    assert "SQLite" in run("backup", "--help").stdout
