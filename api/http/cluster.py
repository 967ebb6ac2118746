"""The cluster over HTTP: who is in it, who leads, handing over; the limits that all nodes share."""

from typing import Any

from aiohttp import web
from msgspec import Struct

from api.http.calls import Call
from api.http.settings import changes_in, settings_type
from api.problems import bad_request
from api.security import Scope
from state import encode
from state.limits import LIMIT_RANGES
from state.operations import SetLimits


class MemberAnswer(Struct, kw_only=True):
    """A member, as the node that answers sees it."""

    node: str
    is_leader: bool
    is_connected: bool  # to the node that answers


class ClusterAnswer(Struct, kw_only=True):
    """The cluster, as the node that answers sees it."""

    node: str
    leader: str | None
    term: int
    is_ready: bool
    committed_index: int
    applied_index: int
    checkpoint_index: int
    sessions: int
    operators: int
    waiting_operations: int
    waiting_consumers: int
    members: list[MemberAnswer]


class TransferAnswer(Struct, kw_only=True):
    """Whether leadership is where it was to go; who leads now."""

    transferred: bool
    leader: str | None


class TransferFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """To whom; without it to the best placed member."""

    to: str = ""


LimitsFields: Any = settings_type(
    "LimitsFields", LIMIT_RANGES, "The limits that are to change, for the whole cluster."
)


class LimitsAnswer(Struct, kw_only=True):
    """The bounds of the replicated state, by their names."""

    limits: dict[str, int]


async def show(call: Call) -> web.Response:
    """Read where the node that answers is, and what it knows of the others."""
    call.options()
    call.front.check(call.principal, Scope.READ)
    front = call.front
    status = front.gateway.status()
    members = {status.node_id: True, **status.peers}
    return call.answer(
        ClusterAnswer(
            node=status.node_id,
            leader=status.leader,
            term=status.term,
            is_ready=status.is_ready,
            committed_index=status.committed_index,
            applied_index=status.applied_index,
            checkpoint_index=status.checkpoint_index,
            sessions=status.sessions,
            operators=len(front.operators),
            waiting_operations=status.waiting_operations,
            waiting_consumers=len(front.waiters),
            members=[
                MemberAnswer(node=node, is_leader=node == status.leader, is_connected=connected)
                for node, connected in sorted(members.items())
            ],
        )
    )


async def transfer(call: Call) -> web.Response:
    """Hand leadership over, to the best placed member or to one."""
    call.front.check(call.principal, Scope.ADMIN)
    call.principal.require_all_themes()
    to = (await call.fields(TransferFields)).to
    status = call.front.gateway.status()
    members = {status.node_id, *status.peers}
    if to and to not in members:
        raise bad_request(f"{to[:64]!a} is no member; those are {', '.join(sorted(members))}")
    transferred = await call.front.gateway.transfer(to)
    leader_now = call.front.gateway.status().leader
    return call.answer(TransferAnswer(transferred=transferred, leader=leader_now))


async def show_limits(call: Call) -> web.Response:
    """Read the bounds of the replicated state."""
    call.options("consistency")
    call.front.check(call.principal, Scope.READ)
    if not call.is_stale_enough:
        await call.read()
    return _limits(call)


async def set_limits(call: Call) -> web.Response:
    """Change some of the bounds, on all nodes at the same place in the log."""
    call.front.check(call.principal, Scope.ADMIN)
    call.principal.require_all_themes()
    changes = changes_in(await call.fields(LimitsFields))
    await call.submit(encode(SetLimits(tuple(changes.items()))))
    return _limits(call)


def _limits(call: Call) -> web.Response:
    limits = call.front.gateway.limits()
    return call.answer(LimitsAnswer(limits={name: getattr(limits, name) for name in LIMIT_RANGES}))
