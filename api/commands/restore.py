"""`ritornello-server restore`: a new cluster out of a backup."""

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

import click

from api.commands.disk import cluster_of
from api.commands.rebirth import RestoreError, check_empty, make_member, release_all
from api.commands.refusals import refusals
from api.settings.table import SETTINGS
from cluster.network.settings import CLUSTER_CHARS_MAX
from cluster.storage.records import Identity
from cluster.storage.state_file import receive

_RESTORED = re.compile(r"-r[0-9a-f]{8}$")
_SUFFIX_CHARS = 10


def new_cluster_id(old: str) -> str:
    """A name that no cluster has: `ritornello` becomes `ritornello-r4f1c09ab`, and that another."""
    base = _RESTORED.sub("", old)[: CLUSTER_CHARS_MAX - _SUFFIX_CHARS]
    return f"{base}-r{secrets.token_hex(4)}"


def identity_or_refuse(old: str, cluster_id: str | None, node_id: str) -> Identity:
    """Who the new member will be. Raises `RestoreError`."""
    if cluster_id is None:
        cluster_id = new_cluster_id(old)
    for name, value in (("node.cluster_id", cluster_id), ("node.id", node_id)):
        form = SETTINGS[name].form
        if form is not None and not form.fits(value):
            raise RestoreError(f"{value!a} cannot be a {name}: it has {form.says}")
    if cluster_id == old:
        raise RestoreError(
            f"the backup is of cluster {old}: under the same name its old members and the restored "
            "ones could meet, and each has what the other has not; leave --cluster-id out for a "
            "name that is new"
        )
    return Identity(cluster_id, node_id)


@click.command("restore")
@click.option(
    "--from",
    "backup",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The backup.",
)
@click.option(
    "--data-directory",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the member will keep its data. It has to be empty, or not to be there.",
)
@click.option(
    "--cluster-id",
    metavar="TEXT",
    help="The name of the new cluster, the same for all its members.  [default: a new one]",
)
@click.option(
    "--node-id",
    default=SETTINGS["node.id"].default,
    show_default=True,
    metavar="TEXT",
    help="The name of the member.",
)
def restore(backup: Path, directory: Path, cluster_id: str | None, node_id: str) -> None:
    """Make the data directory of a member of a NEW cluster out of a backup.

    It never becomes part of the cluster that the backup is of. For a cluster of three, restore the
    same file for each of its members, with the same --cluster-id; then start them in any order.
    """
    with refusals():
        check_empty(directory)  # before the long part
        old = cluster_of(backup)
        identity = identity_or_refuse(old, cluster_id, node_id)
        machine, summary = receive(str(backup), old)
        now_ms, released = machine.now_ms, release_all(machine)
        made = make_member(
            directory, identity, machine, summary.applied_term, summary.applied_index
        )
    what = f"entry {summary.applied_index} of cluster {old}"
    click.echo(f"restored {sessions(made.session_count)} as of {what}, {moment(now_ms)}")
    click.echo(start_text(directory, identity, released))
    click.echo(others_text(backup, identity))


def sessions(count: int) -> str:
    """`1 session`, `12 sessions`."""
    return f"{count} session{'' if count == 1 else 's'}"


def moment(time_ms: int) -> str:
    """A time of the cluster for people."""
    if not time_ms:
        return "when its clock had not begun"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def start_text(directory: Path, identity: Identity, released: int) -> str:
    """What was made, and how it starts."""
    node_id, cluster_id = identity.node_id, identity.cluster_id
    held = f"\n  {sessions(released)} that somebody was working on: due now, and nobody's yet"
    return (
        f"  member {node_id} of the new cluster {cluster_id}{held if released else ''}\n"
        "start it with its settings and\n"
        f"  ritornello-server serve --node-data-directory {directory} --node-id {node_id} "
        f"--node-cluster-id {cluster_id}"
    )


def others_text(backup: Path, identity: Identity) -> str:
    """How the other members come to be, if there are to be some."""
    return (
        "for more members: before any of them starts, do for each of the others\n"
        f"  ritornello-server restore --from {backup} --data-directory DIR "
        f"--cluster-id {identity.cluster_id} --node-id ANOTHER\n"
        "and start none of them with an empty directory: two of three that are empty would begin "
        "an empty cluster"
    )
