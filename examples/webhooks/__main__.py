"""Runs the example: `python -m examples.webhooks`.

Without --urls it starts a cluster of three nodes on this machine first, and keeps it serving until
Ctrl-C, so that one can look around. A second Ctrl-C hurries the end.
"""

import argparse
import asyncio
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from api.commands.chaos import chaos
from api.dev import HTTP_PORT, DevError, LocalCluster, PortInUseError
from examples.webhooks.events import Event, NoHistoryError, read_history
from examples.webhooks.producer import RefusedEventError
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
    parser.add_argument("--http-port", type=int, default=HTTP_PORT, help="of its first node")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where its nodes keep their data (default: a temporary folder, removed at the end)",
    )
    parser.add_argument("--chaos", action="store_true", help="kill and pause its nodes meanwhile")
    parser.add_argument("--seed", type=int, help="of the chaos, to repeat it")
    parser.add_argument("--repository", type=Path, default=_ROOT, help="whose history is delivered")
    parser.add_argument("--events", type=int, default=1_000, help="at most (default: 1000)")
    parser.add_argument("--per-second", type=float, default=40, help="events (default: 40)")
    parser.add_argument("--trouble", type=float, default=0.3, help="part of deliveries that fail")
    parser.add_argument("--once", action="store_true", help="leave when all is delivered")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, events: list[Event], folder: Path) -> int:
    """Do it all, until it is done or somebody asks to stop."""
    cluster = None
    if not arguments.urls:
        directory = arguments.directory or folder / "cluster"
        cluster = LocalCluster(
            directory, nodes=arguments.nodes, http_port=arguments.http_port, on_line=_of_node
        )
    stopping = asyncio.Event()

    def asked() -> None:
        if not stopping.is_set():
            stopping.set()
        elif cluster is not None:
            _say("in a hurry")
            cluster.hurry()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, asked)
    acting = asyncio.ensure_future(_act(arguments, events, folder, cluster))
    asking = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({acting, asking}, return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    if acting.done():
        return acting.result()
    _say("stopping; Ctrl-C again hurries it")
    acting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await acting
    _say("stopped")
    return 0


async def _act(
    arguments: argparse.Namespace, events: list[Event], folder: Path, cluster: LocalCluster | None
) -> int:
    """Have a cluster, and tell the story; answers the exit status."""
    plan = Plan([], events, folder / "receiver.jsonl", arguments.per_second, arguments.trouble)
    if cluster is None:
        return await _tell(arguments, replace(plan, urls=arguments.urls.split(",")))
    async with cluster:
        await cluster.wait_until_ready()
        _say(f"{len(cluster.urls)} nodes are ready: {', '.join(cluster.urls)}")
        plan = replace(plan, urls=cluster.urls)
        if not arguments.chaos:
            return await _tell(arguments, plan)
        seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
        _say(f"chaos: nodes are killed and paused now and then (--seed {seed} repeats it)")
        telling = asyncio.ensure_future(_tell(arguments, plan))
        havoc = asyncio.ensure_future(chaos(cluster, seed, lambda text: _say(f"  {text}")))
        try:
            await asyncio.wait({telling, havoc}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, havoc):
                task.cancel()
            await asyncio.wait({telling, havoc})
        if not havoc.cancelled():
            havoc.result()  # it ends by itself only if the cluster does not get well again
        return telling.result()


async def _tell(arguments: argparse.Namespace, plan: Plan) -> int:
    """Tell the story and its report; keep serving if that is wanted."""
    keys = len({event.key for event in plan.events})
    _say(f"{len(plan.events)} events of {keys} keys, out of the history of this repository")
    report = await tell(plan, _say)
    _say("")
    for line in report.lines():
        _say(line)
    if report.problems:
        return _FAILED
    if not arguments.once:
        _say("")
        _say("The cluster keeps serving until Ctrl-C. Look around:")
        _say(f"    curl {plan.urls[0]}/v1/cluster")
        _say(f"    curl -d 'ship it' {plan.urls[0]}/v1/themes/7/sessions")
        _say(f"    curl -X POST '{plan.urls[-1]}/v1/acquire?themes=7&wait=20'")
        await asyncio.Event().wait()
    return 0


def main() -> int:
    """Run it; answers the exit status."""
    arguments = _arguments()
    if arguments.urls and (arguments.chaos or arguments.directory):
        print("--chaos and --directory are for a cluster that this starts", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="ritornello-webhooks-"))
    try:
        run = secrets.token_hex(8)
        events = read_history(arguments.repository, arguments.events, run)
        return asyncio.run(_run(arguments, events, folder))
    except PortInUseError as error:
        print(
            f"webhooks: {error}. See who it is: ss -ltnp 'sport = :{error.port}'. Stop that, or "
            "choose another port: .venv/bin/python -m examples.webhooks --http-port N",
            file=sys.stderr,
        )
        return _FAILED
    except (NoHistoryError, StoryError, RefusedEventError, DevError) as error:
        print(f"webhooks: {error}", file=sys.stderr)
        return _FAILED
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
