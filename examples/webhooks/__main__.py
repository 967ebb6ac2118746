"""Runs the example: `python -m examples.webhooks`.

Without --urls it starts a cluster of three nodes on this machine first, and keeps it serving until
Ctrl-C, so that one can look around.
"""

import argparse
import asyncio
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from api.commands.chaos import chaos
from api.dev import DevError, LocalCluster
from examples.webhooks.events import Event, NoHistoryError, read_history
from examples.webhooks.story import Plan, StoryError, tell

_ROOT = Path(__file__).resolve().parents[2]
_FAILED = 1


def _say(text: str) -> None:
    print(text, flush=True)


def _of_node(node: str, text: str) -> None:
    """Pass on what the nodes have to say that people want to hear."""
    if node == "dev" or " leads in term " in text:
        _say(f"  [{node}] {text}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.webhooks",
        description="Deliver webhooks to a receiver that is really flaky.",
    )
    parser.add_argument("--urls", help="nodes to use, by commas (default: start a local cluster)")
    parser.add_argument("--nodes", type=int, default=3, help="of the local cluster (default: 3)")
    parser.add_argument("--http-port", type=int, default=7601, help="of its first node")
    parser.add_argument("--directory", type=Path, help="its disks (default: a temporary folder)")
    parser.add_argument("--chaos", action="store_true", help="kill and pause its nodes meanwhile")
    parser.add_argument("--seed", type=int, help="of the chaos, to repeat it")
    parser.add_argument("--repository", type=Path, default=_ROOT, help="whose history is delivered")
    parser.add_argument("--events", type=int, default=1_000, help="at most (default: 1000)")
    parser.add_argument("--per-second", type=float, default=40, help="events (default: 40)")
    parser.add_argument("--trouble", type=float, default=0.3, help="part of deliveries that fail")
    parser.add_argument("--once", action="store_true", help="leave when all is delivered")
    return parser.parse_args()


@contextlib.asynccontextmanager
async def _cluster(arguments: argparse.Namespace, folder: Path) -> AsyncIterator[list[str]]:
    """The nodes to use, and chaos among them if that is wanted."""
    if arguments.urls:
        yield arguments.urls.split(",")
        return
    directory = arguments.directory or folder / "cluster"
    cluster = LocalCluster(
        directory, nodes=arguments.nodes, http_port=arguments.http_port, on_line=_of_node
    )
    async with cluster:
        await cluster.wait_until_ready()
        _say(f"{arguments.nodes} nodes are ready: {', '.join(cluster.urls)}")
        if not arguments.chaos:
            yield cluster.urls
            return
        seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
        _say(f"chaos: nodes are killed and paused now and then (--seed {seed} repeats it)")
        havoc = asyncio.ensure_future(chaos(cluster, seed, lambda text: _say(f"  {text}")))
        try:
            yield cluster.urls
        finally:
            havoc.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await havoc


async def _run(arguments: argparse.Namespace, events: list[Event], folder: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with _cluster(arguments, folder) as urls:
        plan = Plan(
            urls, events, folder / "receiver.jsonl", arguments.per_second, arguments.trouble
        )
        keys = len({event.key for event in events})
        _say(f"{len(events)} events of {keys} keys, out of the history of this repository")
        telling = asyncio.ensure_future(tell(plan, _say))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({telling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not telling.done():
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
            _say("stopped before the end")
            return 0
        report = telling.result()
        _say("")
        for line in report.lines():
            _say(line)
        if report.problems:
            return _FAILED
        if not arguments.once:
            _say("")
            _say("The cluster keeps serving until Ctrl-C. Look around:")
            _say(f"    curl {urls[0]}/v1/cluster")
            _say(f"    curl -d 'ship it' {urls[0]}/v1/themes/7/sessions")
            _say(f"    curl -X POST '{urls[-1]}/v1/acquire?themes=7&wait=20'")
            await stopping
        return 0


def main() -> int:
    """Run it; answers the exit status."""
    arguments = _arguments()
    if arguments.urls and (arguments.chaos or arguments.directory):
        print("--chaos and --directory are for a cluster that this starts", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="ritornello-webhooks-"))
    try:
        events = read_history(arguments.repository, arguments.events)
        return asyncio.run(_run(arguments, events, folder))
    except (NoHistoryError, StoryError, DevError) as error:
        print(f"webhooks: {error}", file=sys.stderr)
        return _FAILED
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
