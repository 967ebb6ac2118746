"""The numbers of real nodes, read as Prometheus reads them."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from api.http.routes import ROUTES
from api.metrics import (
    CONTENT_TYPE,
    LAG_PERIOD_S,
    METRICS,
    PREFIX,
    REQUEST_BUCKETS_S,
    HttpMeter,
    Kind,
    LoopLag,
    Metrics,
    RefusalMeter,
)
from api.security import Tokens, new_token
from api.websocket.frames import JSON
from tests.api.security.files import entry, swap
from tests.api.servers import READY_S, Running, cluster_of_three, server, until

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """What was read at one moment."""

    text: str
    families: dict[str, Metric]
    samples: dict[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        """One value; 0 of labels that are not there, as a rate would have it."""
        return self.samples.get((PREFIX + name, frozenset(labels.items())), 0.0)


def parsed(text: str) -> Scrape:
    families = {one.name: one for one in text_string_to_metric_families(text)}
    samples = {
        (one.name, frozenset(one.labels.items())): one.value
        for family in families.values()
        for one in family.samples
    }
    return Scrape(text, families, samples)


@dataclass(frozen=True)
class Metered:
    """A server with metrics, and a client of it."""

    running: Running
    metrics: Metrics
    client: ClientSession

    async def scrape(self) -> Scrape:
        async with self.client.get("/metrics") as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"] == CONTENT_TYPE
            return parsed(await response.text())


@asynccontextmanager
async def metered(running: Running) -> AsyncIterator[Metered]:
    """A client of a server."""
    async with ClientSession(running.url) as client:
        yield Metered(running, running.front.metrics, client)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Metered]:
    async with server(tmp_path) as running, metered(running) as found:
        yield found


async def eventually(
    node: Metered, holds: Callable[[Scrape], bool], timeout_s: float = 20.0
) -> Scrape:
    """Scrape until something holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await node.scrape()
            if holds(found):
                return found
            await asyncio.sleep(0.02)


async def post(node: Metered, path: str, status: int = 200, **options: str) -> dict[str, str]:
    headers = {"Ritornello-Epoch": epoch} if (epoch := options.pop("epoch", "")) else {}
    data = options.pop("data", "").encode()
    async with node.client.post(path, params=options, headers=headers, data=data) as response:
        assert response.status == status, await response.text()
        found: dict[str, str] = await response.json()
        return found


# What is there


async def test_all_that_is_declared_is_there_and_as_it_was_declared(node: Metered) -> None:
    await node.scrape()
    found = await node.scrape()  # the first one has a route and a status by now
    own = {name for name in found.families if name.startswith(PREFIX)}
    assert own == {one.name.removesuffix("_total") for one in METRICS}
    for one in METRICS:
        family = found.families[one.name.removesuffix("_total")]
        assert family.type == one.kind
        assert family.documentation == one.help
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(one.labels)
    assert "process_cpu_seconds" in found.families
    assert "process_resident_memory_bytes" in found.families
    assert "python_gc_collections" in found.families


def test_names_say_the_unit_and_it_is_a_base_unit() -> None:
    names = [one.name for one in METRICS]
    assert len(set(names)) == len(names)
    for one in METRICS:
        assert re.fullmatch(r"ritornello_[a-z]+(_[a-z]+)*", one.name)
        assert one.name.endswith("_total") == (one.kind is Kind.COUNTER), one.name
        assert not re.search(r"_(ms|us|ns|milliseconds|kib|mib|kb|mb|percent)(_|$)", one.name)
        assert one.help.endswith(".")
        assert set(one.labels).isdisjoint({"key", "session", "id", "token", "consumer"})


async def test_histograms_are_cumulative_and_end_with_all(node: Metered) -> None:
    await post(node, "/v1/themes/7/sessions", 201)
    found = await node.scrape()
    histograms = [one.name for one in METRICS if one.kind is Kind.HISTOGRAM]
    for name in histograms:
        series: dict[Labels, list[tuple[float, float]]] = {}
        for sample in found.families[name].samples:
            if sample.name == f"{name}_bucket":
                others = {key: value for key, value in sample.labels.items() if key != "le"}
                bound = float(sample.labels["le"])
                series.setdefault(frozenset(others.items()), []).append((bound, sample.value))
        for labels, buckets in series.items():
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1] == (float("inf"), found.samples[f"{name}_count", labels])
            assert (f"{name}_sum", labels) in found.samples


async def test_the_labels_are_few_however_much_there_is(node: Metered) -> None:
    requests = [node.client.post(f"/v1/themes/{theme}/sessions") for theme in range(130)]
    for response in await asyncio.gather(*requests):
        response.release()
    for path in ("/nothing", "/v1/sessions/zzz", "/v1/sessions/1fff", "/v1/themes/x"):
        async with node.client.get(path) as response:
            assert response.status == 404
    found = await node.scrape()
    assert found.value("themes") == 130
    assert found.value("sessions", phase="active") == 130
    by_name = Counter(sample.name for one in found.families.values() for sample in one.samples)
    assert by_name[f"{PREFIX}theme_active_sessions"] == 100
    routes = {dict(labels).get("route") for name, labels in found.samples if "http_" in name}
    assert routes <= {None, "none", *(one.path for one in ROUTES)}
    assert found.value("http_requests_total", route="none", method="none", status="404") == 1


async def test_no_key_payload_consumer_or_session_is_told(node: Metered) -> None:
    names = {"Ritornello-Consumer": "w0rker-secret"}
    async with node.client.post(
        "/v1/themes/7/sessions?key=k3y-secret", data=b"p4yload-secret", headers=names
    ) as response:
        session_id = (await response.json())["id"]
    async with node.client.get("/v1/themes/7/keys/k3y-secret") as response:
        assert response.status == 200
    async with node.client.post(
        f"/v1/sessions/{session_id}/park?reason=r34son-secret", headers={"Ritornello-Epoch": "1"}
    ) as response:
        assert response.status == 200
    found = await node.scrape()
    assert found.value("theme_parked_sessions", theme="7") == 1
    assert "secret" not in found.text
    assert f'"{session_id}"' not in re.sub(r'(le|theme|generation|status)="[^"]*"', "", found.text)


# How it moves


async def test_numbers_move_as_they_should(node: Metered) -> None:
    before = await node.scrape()
    created = [
        await post(node, "/v1/themes/7/sessions", 201, data="ship it", repeat_after="0")
        for _ in range(3)
    ]
    await post(node, "/v1/acquire", themes="7")
    await post(node, f"/v1/sessions/{created[0]['id']}/park", epoch="1")
    await post(node, "/v1/themes/8/sessions", 201, repeat_after="3600")
    await post(node, f"/v1/sessions/{created[0]['id']}/append", 409, epoch="9", data="late")
    async with node.client.get(f"/v1/sessions/{created[1]['id']}") as response:
        assert response.status == 200
    after = await node.scrape()

    def gain(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert gain("operations_total") >= 8
    assert gain("answered_operations_total") >= 8
    assert 1 <= gain("batches_total") <= gain("operations_total")
    assert gain("commit_seconds_count") == gain("batches_total")
    assert 0 < gain("commit_seconds_sum") < 30
    assert gain("apply_seconds_count") == gain("batches_total") == gain("applied_index")
    assert gain("batch_operations_sum") == gain("operations_total")
    assert gain("batch_bytes_sum") > 0
    assert gain("fsync_seconds_count") >= 1
    assert gain("journal_written_bytes_total") > 0
    assert gain("reads_total") >= 1
    assert gain("committed_index") >= 1
    assert after.value("lag_entries") == 0
    assert {
        name: after.value("sessions", phase=name) for name in ("stored", "ready", "parked")
    } == {
        "stored": 1,
        "ready": 2,
        "parked": 1,
    }
    assert after.value("theme_ready_sessions", theme="7") == 2
    assert after.value("theme_stored_sessions", theme="8") == 1
    assert after.value("themes") == 2
    assert gain("state_bytes") > 4 * 700
    path = "/v1/themes/{theme}/sessions"
    assert gain("http_requests_total", route=path, method="POST", status="201") == 4
    assert gain("http_request_seconds_count", route=path, method="POST") == 4
    assert 0 < gain("http_request_seconds_sum", route=path, method="POST") < 30
    path = "/v1/sessions/{id}/append"
    assert gain("http_requests_total", route=path, method="POST", status="409") == 1


async def test_how_the_node_is(node: Metered) -> None:
    found = await eventually(node, lambda one: one.value("loop_lag_seconds_count") >= 3)
    assert found.value("info", node="node-1", version=node.metrics.version) == 1
    assert found.value("ready") == found.value("is_leader") == found.value("has_leader") == 1
    assert found.value("term") == found.value("leader_changes_total") == 1
    assert found.value("draining") == found.value("spare_segment_error") == 0
    assert found.value("journal_segments") >= 1
    assert found.value("journal_bytes") >= 256 * 1024
    assert found.value("state_limit_bytes") == 4 * 2**30
    assert 0 <= found.value("loop_lag_seconds_sum") < 30
    assert found.value("error_budget_failures") == 0
    assert found.value("failed_operations_total", code="timed_out") == 0
    assert not any("transport" in name or "peer_" in name for name, _ in found.samples)


async def test_what_waits_and_what_is_worked_on_is_counted(node: Metered) -> None:
    await post(node, "/v1/themes/7/sessions", 201)
    waiting = asyncio.ensure_future(node.client.post("/v1/acquire?themes=9&wait=30"))
    found = await eventually(node, lambda one: one.value("waiters") == 1)
    assert found.value("operators") == 1
    path = "/v1/acquire"
    assert found.value("http_requests_total", route=path, method="POST", status="200") == 0
    await post(node, "/v1/themes/9/sessions", 201, repeat_after="0")
    async with await waiting as response:
        assert response.status == 200
    found = await node.scrape()
    assert (found.value("waiters"), found.value("operators")) == (0, 2)
    assert found.value("http_requests_total", route=path, method="POST", status="200") == 1


async def test_what_goes_over_websockets_is_counted(node: Metered) -> None:
    async with node.client.ws_connect("/v1/operate", protocols=[JSON]) as socket:
        hello = await socket.receive_str()
        new = '{"op":"new","seq":1,"theme":7,"text":"ship it"}'
        await socket.send_str(new)
        created = await socket.receive_str()
        await socket.send_str('[{"op":"append","seq":2},{"op":"nonsense","seq":3}]')
        await socket.receive_str()
        found = await node.scrape()
        assert found.value("websocket_connections") == found.value("websocket_opened_total") == 1
        assert found.value("operators") == 1
        told = {op: found.value("websocket_requests_total", op=op) for op in ("new", "get")}
        assert told == {"new": 1, "get": 0}
        assert found.value("websocket_requests_total", op="other") >= 1
        assert found.value("websocket_frames_total", direction="in") == 2
        assert found.value("websocket_bytes_total", direction="in") > len(new)
        assert found.value("websocket_frames_total", direction="out") >= 3
        assert found.value("websocket_bytes_total", direction="out") > len(hello) + len(created)
        await socket.close(code=4999)
    found = await eventually(node, lambda one: one.value("websocket_connections") == 0)
    assert found.value("websocket_closed_total", code="other") == 1, "4999 is a client's own"


async def test_reaped_sessions_are_counted(node: Metered) -> None:
    async with node.client.patch("/v1/themes/7/policy", json={"lease_ms": 100}) as response:
        assert response.status == 200
    await post(node, "/v1/themes/7/sessions", 201)
    found = await eventually(
        node, lambda one: one.value("reaped_sessions_total", cause="stale") == 1
    )
    assert found.value("sessions", phase="active") == 0


async def test_nobody_who_takes_what_is_due_can_be_seen(node: Metered) -> None:
    """Though nothing happens at all, and the replicated time stands still."""
    await post(node, "/v1/themes/7/sessions", 201, repeat_after="0")
    found = await eventually(node, lambda one: one.value("oldest_due_seconds") >= 0.5)
    assert found.value("theme_oldest_due_seconds", theme="7") >= 0.5
    await post(node, "/v1/themes/7/pause")
    found = await node.scrape()
    assert found.value("theme_paused", theme="7") == 1
    assert found.value("theme_oldest_due_seconds", theme="7") >= 0.5
    assert found.value("oldest_due_seconds") == 0, "somebody wants it so"


async def test_checkpoints_are_seen(node: Metered) -> None:
    before = (await node.scrape()).value("checkpoint_index")
    await post(node, "/v1/themes/7/sessions", 201)
    found = await eventually(node, lambda one: one.value("checkpoint_index") > before)
    assert found.value("checkpoint_seconds_count") >= 1
    assert found.value("checkpoint_age_seconds") < 20


async def test_files_that_cannot_be_used_are_seen(node: Metered, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    swap(path, entry(new_token()))
    node.metrics.files["tokens"] = files = Tokens(path).files
    assert (await node.scrape()).value("file_problem", files="tokens") == 0
    swap(path, "nonsense")
    await asyncio.to_thread(files.look)
    found = await node.scrape()
    assert found.value("file_problem", files="tokens") == 1
    assert found.value("file_reload_failures_total", files="tokens") == 1
    swap(path, entry(new_token()))
    await asyncio.to_thread(files.look)
    found = await node.scrape()
    assert found.value("file_problem", files="tokens") == 0
    assert found.value("file_reloads_total", files="tokens") == 1


async def test_scrapes_do_not_disturb_each_other(node: Metered) -> None:
    await node.scrape()
    found = await asyncio.gather(*(node.scrape() for _ in range(5)))
    assert len({frozenset(one.families) for one in found}) == 1
    assert all(len(one.samples) > 200 for one in found)


async def test_a_node_that_is_being_stopped_is_still_read(tmp_path: Path) -> None:
    async with server(tmp_path) as running, metered(running) as node:
        running.front.health.is_draining = True
        found = await node.scrape()
        assert (found.value("ready"), found.value("draining")) == (0, 1)


# A cluster


async def test_one_of_three_leads_and_all_see_each_other(tmp_path: Path) -> None:
    async with (
        cluster_of_three(tmp_path) as nodes,
        metered(nodes[0]) as one,
        metered(nodes[1]) as two,
        metered(nodes[2]) as three,
    ):
        everybody = (one, two, three)
        for node in everybody:
            await post(node, "/v1/themes/7/sessions", 201)
        await until(lambda: all(not node.front.gateway.lag for node in nodes))

        def connected(found: Scrape) -> bool:
            names = [f"node-{number}" for number in (1, 2, 3)]
            return sum(found.value("peer_connected", peer=name) for name in names) == 2

        async with asyncio.timeout(READY_S):
            while True:  # two may have stood at the same time, one after the other
                scrapes = [await eventually(node, connected) for node in everybody]
                if (
                    len({(found.value("term"), found.value("has_leader")) for found in scrapes})
                    == 1
                ):
                    break
        assert sum(found.value("is_leader") for found in scrapes) == 1
        assert {found.value("has_leader") for found in scrapes} == {1}
        assert len({found.value("term") for found in scrapes}) == 1
        for found in scrapes:
            assert found.value("transport_frames_total", direction="in") > 0
            assert found.value("transport_bytes_total", direction="out") > 0
            assert found.value("transport_events_total", event="connections") >= 2
            lags = [name for name, _ in found.samples if name.endswith("peer_lag_entries")]
            assert len(lags) == 2 * found.value("is_leader"), "only a leader knows"
        (leader,) = [
            node for node, found in zip(everybody, scrapes, strict=True) if found.value("is_leader")
        ]
        changes = {
            node: found.value("leader_changes_total")
            for node, found in zip(everybody, scrapes, strict=True)
        }
        await post(leader, "/v1/cluster/transfer")
        for node in everybody:
            await eventually(node, partial(_has_changed, changes[node]))


def _has_changed(changes: float, found: Scrape) -> bool:
    return found.value("leader_changes_total") > changes


# Who may see it


async def test_beyond_loopback_it_takes_a_token_for_everything(tmp_path: Path) -> None:
    reader, worker, tenant = new_token(), new_token(), new_token()
    tokens = (
        entry(reader, "reader", '["read"]')
        + entry(worker, "worker", '["operate"]')
        + entry(tenant, "tenant", '["admin"]', 'themes = ["1-9"]')
    )
    async with server(tmp_path, tokens=tokens) as running, metered(running) as node:
        node.metrics.is_open = False

        async def status(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            async with node.client.get("/metrics", headers=headers) as response:
                assert (PREFIX in await response.text()) == (response.status == 200)
                return response.status

        assert await status(None) == 401
        assert await status(new_token()) == 401
        assert await status(tenant) == 403, "it would see the themes of others"
        assert await status(reader) == 200
        assert await status(worker) == 200
        node.metrics.is_open = True
        assert await status(None) == 200


async def test_it_takes_no_body_and_no_options(node: Metered) -> None:
    async with node.client.get("/metrics?verbose=1") as response:
        assert response.status == 400
    async with node.client.post("/metrics") as response:
        assert response.status == 405


async def test_what_a_client_is_told_is_counted_by_code(node: Metered) -> None:
    await post(node, "/v1/sessions/1fff/touch", 404, epoch="1")
    async with node.client.ws_connect("/v1/operate", protocols=[JSON]) as socket:
        await socket.receive_str()
        await socket.send_str('{"op":"touch","seq":1,"id":"1fff","epoch":1}')
        assert "session_not_found" in await socket.receive_str()
        await socket.send_str('{"op":"get","seq":2,"id":"1fff"}')
        assert "session_not_found" in await socket.receive_str()
    found = await node.scrape()
    assert found.value("refusals_total", code="session_not_found") == 3
    assert found.value("http_connections") >= 1


async def test_who_leaves_while_waiting_is_counted(node: Metered) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), node.client.post("/v1/acquire?themes=9&wait=30"):
            pass
    path = "/v1/acquire"
    await eventually(
        node,
        lambda one: one.value("http_requests_total", route=path, method="POST", status="499") == 1,
    )


# The meters by themselves


def test_requests_are_counted_by_route_and_status() -> None:
    meter = HttpMeter([("GET", "/a"), ("POST", "/b")])
    meter.observe(0, 200, 0.0004)
    meter.observe(0, 200, 0.3)
    meter.observe(0, 404, 100.0)
    meter.observe(-1, 404, 0.0)
    assert meter.requests() == {
        ("/a", "GET", "200"): 2,
        ("/a", "GET", "404"): 1,
        ("none", "none", "404"): 1,
    }
    durations = meter.durations()
    assert set(durations) == {("/a", "GET"), ("none", "none")}
    found = durations["/a", "GET"]
    assert found.count == 3
    assert found.total == pytest.approx(100.3004)
    assert found.buckets[0] == 1
    assert found.buckets[-1] == 1, "beyond the last bound"
    assert list(found.bounds) == sorted(REQUEST_BUCKETS_S)


def test_refusals_are_counted_by_codes_that_are_known() -> None:
    meter = RefusalMeter()
    meter.count("lease_lost")
    meter.count("something that a client has made up")
    assert meter.counts["lease_lost"] == meter.counts["other"] == 1
    assert sum(meter.counts.values()) == 2


async def test_a_loop_that_is_kept_is_seen_to_be_late() -> None:
    lag = LoopLag(0.01)
    lag.start()
    lag.start()  # already
    await until(lambda: lag.late_s.values().count >= 3)
    before = lag.late_s.values()
    _keep_the_loop(0.2)
    await until(lambda: lag.late_s.values().count > before.count)
    lag.stop()
    after = lag.late_s.values()
    assert after.total - before.total >= 0.18
    await asyncio.sleep(0.05)
    assert lag.late_s.values() == after, "it was stopped"
    assert LAG_PERIOD_S == 0.1, "the metric's help says so"


def _keep_the_loop(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    while loop.time() < until_s:
        pass


# The page


def table() -> str:
    """All metrics, as the page has them."""
    lines = ["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for one in METRICS:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(lines)


_TABLE = re.compile(r"\| Metric \| Type .*?(?=\n\n)", re.DOTALL)


def test_the_page_has_all_metrics(rewrite: bool) -> None:
    page = DOCS.read_text(encoding="utf-8")
    if rewrite:
        page = _TABLE.sub(lambda _: table(), page, count=1)
        DOCS.write_text(page, encoding="utf-8")
    assert table() in page, "pytest --rewrite writes it anew"


def test_the_page_tells_of_nothing_else() -> None:
    page = DOCS.read_text(encoding="utf-8")
    known = {one.name for one in METRICS}
    for one in METRICS:
        if one.kind is Kind.HISTOGRAM:
            known |= {f"{one.name}_{part}" for part in ("bucket", "sum", "count")}
    told = set(re.findall(r"ritornello_\w+", page))
    assert told - known == set()
