"""What does not fit together is refused, and the message says what to write."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import Address, Node, NodeSettings, SettingsError
from cluster.checkpoints import CheckpointSettings
from cluster.consensus.member import ConsensusSettings
from cluster.consensus.messages import Append, Chunk, Forward, encode
from cluster.network.settings import TRANSPORT_RANGES, TransportSettings
from cluster.queues import QueueSettings
from cluster.replica import ReplicaSettings
from cluster.storage.disk import OsDirectory
from cluster.storage.journal_files import JournalFiles, JournalSettings
from cluster.storage.records import Entry
from state import Created
from state.limits import KIB, LIMIT_RANGES, MIB, PROPOSER_CHARS_MAX
from state.operations import Acquire, New
from tests.cluster.storage.journal_model import IDENTITY

BATCH_MAX_BYTES = LIMIT_RANGES["batch_bytes"].maximum
NUMBER_MAX = 2**48

PLAIN = NodeSettings(Path("data"))


def least(settings: NodeSettings, **changes: object) -> int:
    """What the message says that is to be written instead."""
    with pytest.raises(SettingsError) as refused:
        replace(settings, **changes)  # type: ignore[arg-type]
    found = re.search(r"give (\d+) or more$", str(refused.value))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("node_id", ["a/b", "/", "a b", "a\n", "a:1", "n\u00f6de"])
def test_an_id_has_no_character_that_means_something_elsewhere(node_id: str) -> None:
    # With a slash, a consumer of the node "a/b" would look like one of an earlier life of "a".
    peers = {name: Address("127.0.0.1", 1) for name in ("a", "c", node_id)}
    refused: tuple[dict[str, Any], ...] = ({"node_id": node_id}, {"node_id": "a", "peers": peers})
    for changes in refused:
        with pytest.raises(SettingsError, match=r"write it with ASCII letters, digits, '\.', '-'"):
            replace(PLAIN, **changes)


@pytest.mark.parametrize("node_id", ["", "n" * (PROPOSER_CHARS_MAX + 1)])
def test_an_id_has_a_length(node_id: str) -> None:
    peers = {name: Address("127.0.0.1", 1) for name in ("a", "c", node_id)}
    refused: tuple[dict[str, Any], ...] = ({"node_id": node_id}, {"node_id": "a", "peers": peers})
    for changes in refused:
        with pytest.raises(SettingsError, match=f"1 to {PROPOSER_CHARS_MAX} characters, not "):
            replace(PLAIN, **changes)


def test_ids_may_be_names_of_hosts() -> None:
    ids = ("node-1.example.org", "Node_2", "3")
    peers = {name: Address("127.0.0.1", 1) for name in ids}
    for name in ids:
        assert len(replace(PLAIN, node_id=name, peers=peers).others) == 2


async def test_the_longest_id_leaves_room_for_the_names_of_consumers(tmp_path: Path) -> None:
    longest = replace(PLAIN, data_directory=tmp_path, node_id="n" * PROPOSER_CHARS_MAX)
    async with Node(replace(longest, tunes_collector=False)) as node:
        await node.wait_until_ready()
        consumer = node.consumer(b"c" * 64)
        assert isinstance(await node.submit(New(7, consumer=consumer)), Created)
        assert await node.submit(Acquire((7,), consumer=consumer)) == ()


def test_a_frame_of_the_journal_holds_the_largest_batch(tmp_path: Path) -> None:
    frame_bytes = least(PLAIN, journal=JournalSettings(frame_max_bytes=64 * KIB))
    assert least(PLAIN, journal=JournalSettings(frame_max_bytes=frame_bytes - 1)) == frame_bytes
    settings = JournalSettings(frame_max_bytes=frame_bytes)
    replace(PLAIN, journal=settings)
    with OsDirectory(str(tmp_path)) as directory:
        files, _ = JournalFiles.open(directory, IDENTITY, settings)
        files.append([Entry(2, 1, bytes(BATCH_MAX_BYTES))])
        files.close()


def test_a_frame_of_the_transport_holds_the_largest_message() -> None:
    frame_bytes = least(PLAIN, transport=TransportSettings(frame_bytes=64 * KIB))
    assert least(PLAIN, transport=TransportSettings(frame_bytes=frame_bytes - 1)) == frame_bytes
    replace(PLAIN, transport=TransportSettings(frame_bytes=frame_bytes))
    batch = bytes(BATCH_MAX_BYTES)
    one = ((NUMBER_MAX, batch),)
    assert len(encode(Append(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, one))) <= frame_bytes
    assert len(encode(Forward(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, batch))) <= frame_bytes


def test_a_frame_of_the_transport_holds_what_goes_in_one_message() -> None:
    message_bytes = 40 * MIB
    consensus = ConsensusSettings(message_bytes=message_bytes)
    assert least(PLAIN, replica=ReplicaSettings(consensus=consensus)) >= 80 * MIB
    chunk_bytes = 80 * MIB
    checkpoint = CheckpointSettings(chunk_bytes=chunk_bytes)
    frame_bytes = least(PLAIN, replica=ReplicaSettings(checkpoint=checkpoint))
    chunk = Chunk(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, bytes(chunk_bytes))
    assert len(encode(chunk)) <= frame_bytes


def test_many_small_entries_fit_into_a_message() -> None:
    # The smallest batches have more than this.
    entries = ((NUMBER_MAX, bytes(16)),) * (MIB // 16)
    message = Append(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, entries)
    assert len(encode(message)) <= 2 * MIB + KIB


def test_what_may_wait_for_a_peer_has_room() -> None:
    default = TRANSPORT_RANGES["send_buffer_bytes"].default
    wide = TransportSettings(frame_bytes=256 * MIB, send_buffer_bytes=16 * 1024 * MIB)
    settings = replace(PLAIN, transport=wide)
    low = TransportSettings(send_buffer_bytes=MIB)
    assert least(settings, transport=low) <= default
    queue = QueueSettings(pipelined_batches=100)
    assert least(PLAIN, replica=ReplicaSettings(queue=queue)) > default
