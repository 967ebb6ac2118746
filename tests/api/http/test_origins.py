"""Which web sites may use the interface, and by which names it is called."""

from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientSession, WSServerHandshakeError

from api.http.origins import Origins, is_own_name
from api.problems import Refusal
from api.settings.build import HttpSettings
from cluster import Address
from tests.api.http import raw
from tests.api.http.client import Client, client
from tests.api.security.files import entry
from tests.api.servers import HTTP, Running, server

SITE = "https://console.example.org"
TOKEN = "rit_" + "t" * 43
NEW = "/v1/themes/7/sessions"


# Without tokens


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", ""])
async def test_a_foreign_site_may_not_use_a_server_without_tokens(
    caller: Client, origin: str
) -> None:
    for answer in (
        await caller.post(NEW, b"x", headers={"Origin": origin}),
        await caller.get("/v1/themes", headers={"Origin": origin}),
        await caller.ask("OPTIONS", NEW, headers={"Origin": origin}),
    ):
        assert answer.problem == (403, "forbidden")
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert (await caller.get("/v1/themes")).json["themes"] == []


async def test_its_own_pages_may(running: Running, caller: Client) -> None:
    assert (await caller.post(NEW, b"x", headers={"Origin": running.url})).status == 201


async def test_a_foreign_site_gets_no_websocket(running: Running) -> None:
    async with ClientSession(running.url) as session:
        with pytest.raises(WSServerHandshakeError) as error:
            await session.ws_connect(
                "/v1/operate",
                protocols=["ritornello.json.v1"],
                headers={"Origin": "http://evil.example"},
            )
        assert error.value.status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7601", "10.0.0.1", "localhost.evil"]
)
async def test_on_loopback_it_answers_to_names_of_this_machine_only(
    caller: Client, host: str
) -> None:
    answer = await caller.post(NEW, b"x", headers={"Host": host})
    assert answer.problem == (403, "forbidden")
    assert "http.tokens_file" in answer.json["detail"]
    # A site whose name leads here is no better.
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert (await caller.post(NEW, b"x", headers=headers)).status == 403


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9",
        "a.localhost:80",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]:7601",
        "[::1]",
    ],
)
async def test_tunnels_and_other_names_of_this_machine_work(caller: Client, host: str) -> None:
    assert (await caller.post(NEW, b"x", headers={"Host": host})).status == 201


@pytest.mark.parametrize("host", ["", "[", "[]", "[::2]", "1.2.3.4", "xn--local", "127.0.0.1.x"])
def test_other_names_are_foreign(host: str) -> None:
    assert not is_own_name(host)


def test_beyond_loopback_any_name_may_be_meant() -> None:
    origins = Origins(HttpSettings(bind=Address("0.0.0.0", 7601), insecure=True))  # noqa: S104 - not bound
    origins.check({"Host": "ritornello.example"})
    with pytest.raises(Refusal):
        origins.check({"Host": "ritornello.example", "Origin": "http://evil.example"})


# With tokens


async def test_with_tokens_a_site_has_to_have_one(tmp_path: Path) -> None:
    async with server(tmp_path, tokens=entry(TOKEN)) as running:
        headers = {"Origin": SITE, "Host": "anything.example"}
        async with client(running, headers=headers) as stranger:
            assert (await stranger.get("/v1/themes")).problem == (401, "unauthenticated")
        async with client(running, token=TOKEN, headers=headers) as known:
            answer = await known.get("/v1/themes")
            assert answer.status == 200
            assert "Access-Control-Allow-Origin" not in answer.headers  # a browser keeps it


# CORS


@pytest.fixture(params=[(SITE,), ("*",)], ids=["named", "all"])
def origins(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


async def test_a_site_that_is_named_may_read_the_answers(
    tmp_path: Path, origins: tuple[str, ...]
) -> None:
    http = replace(HTTP, cors_origins=origins)
    async with (
        server(tmp_path, http=http, tokens=entry(TOKEN)) as running,
        client(running, headers={"Origin": SITE}) as site,
    ):
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, ritornello-epoch",
        }
        preflight = await site.ask("OPTIONS", NEW, headers=asked)
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == origins[0]
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        for name in ("Authorization", "Ritornello-Epoch", "Content-Type", "Idempotency-Key"):
            assert name in preflight.headers["Access-Control-Allow-Headers"]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for answer in (
            await site.post(NEW, b"x", headers=headers),
            await site.get("/v1/sessions/1", headers=headers),
            await site.get("/v1/sessions/ff", headers=headers),
            await site.get("/nowhere"),
            await site.get("/v1/themes"),  # a refusal can be read, too
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == origins[0]
            assert "Ritornello-Epoch" in answer.headers["Access-Control-Expose-Headers"]
            assert "Origin" in answer.headers["Vary"]


async def test_an_origin_that_is_no_text_is_none(tmp_path: Path) -> None:
    http = replace(HTTP, cors_origins=("*",))
    async with (
        server(tmp_path, http=http, tokens=entry(TOKEN)) as running,
        raw.connection(running) as (reader, writer),
    ):
        host = running.host.encode()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: %s\r\nOrigin: http://\xff\xfe\r\n\r\n" % host)
        assert (await raw.answer(reader)).status == 200


async def test_other_sites_may_not(tmp_path: Path) -> None:
    http = replace(HTTP, cors_origins=(SITE,))
    async with server(tmp_path, http=http) as running:
        async with client(running, headers={"Origin": "https://other.example"}) as other:
            answer = await other.get("/v1/themes")
            assert answer.problem == (403, "forbidden")
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert answer.headers["Vary"] == "Origin"
        async with client(running, headers={"Origin": SITE.upper()}) as site:
            assert (await site.get("/v1/themes")).status == 200
