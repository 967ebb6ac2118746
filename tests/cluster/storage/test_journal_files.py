"""What opening accepts and refuses, and the format to the byte."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c

from cluster.storage.disk import OsDirectory
from cluster.storage.errors import (
    ClosedError,
    DamagedError,
    DiskFullError,
    OtherVersionError,
    RefusedError,
    StorageError,
    TooLargeError,
    WrongIdentityError,
)
from cluster.storage.journal_files import JournalFiles, JournalSettings, Recovered
from cluster.storage.records import (
    Base,
    Commit,
    Entry,
    Identity,
    Incarnation,
    Record,
    Truncate,
    Vote,
)
from cluster.storage.segments import FRAME_BYTES, HEADER_BYTES, SECTOR_BYTES, VERSION, SegmentReader
from tests.cluster.storage.journal_model import IDENTITY, Model, Writer
from tests.simulation.disk import Operation, VirtualDirectory

SETTINGS = JournalSettings(
    segment_bytes=8192, frame_max_bytes=1 << 18, spares_max=1, recycled_max=1
)
GOLDEN = Path(__file__).parent / "golden" / "segment-v3.hex"
FIRST, SECOND, THIRD = (f"segment-{number:016}" for number in (1, 2, 3))


def opened(
    directory: VirtualDirectory,
    settings: JournalSettings = SETTINGS,
    identity: Identity = IDENTITY,
) -> tuple[JournalFiles, Recovered]:
    """As after the end of whoever had it open."""
    directory.kill()
    return JournalFiles.open(directory, identity, settings)


def written(*frames: list[Record], settings: JournalSettings = SETTINGS) -> VirtualDirectory:
    """A disk with these frames on it, each durable."""
    directory = VirtualDirectory()
    files, _ = opened(directory, settings)
    for frame in frames:
        files.append(frame)
        files.sync()
    return directory


def entries(first: int, last: int, size_bytes: int = 10) -> list[Record]:
    return [Entry(index, 1, bytes([index % 256]) * size_bytes) for index in range(first, last + 1)]


def names(directory: VirtualDirectory, prefix: str = "segment-") -> list[str]:
    return [name for name in directory.names() if name.startswith(prefix)]


# What opening finds


def test_a_new_journal() -> None:
    _, recovered = opened(VirtualDirectory())
    assert recovered == Recovered(1, 0, [], 0, None, 1, 0)


def test_a_journal_without_anything_but_its_beginning_is_not_new() -> None:
    directory = written()
    assert names(directory) == [FIRST]
    _, recovered = opened(directory)
    assert recovered == Recovered(1, 0, [], 0, None, 1, 0)


def test_all_kinds_of_records() -> None:
    directory = written(
        [Incarnation(7), Vote(3, "viola")],
        [Entry(2, 1, b"two"), Entry(3, 2, b""), Entry(4, 3, bytes(5000)), Commit(2)],
        [Truncate(4), Entry(4, 3, b"four"), Entry(5, 3, b"five")],
        [Commit(4), Base(3, 2)],
    )
    _, recovered = opened(directory)
    assert recovered == Recovered(3, 2, [(b"four", 4, 3), (b"five", 5, 3)], 3, "viola", 4, 7)


def test_a_base_from_elsewhere_ends_the_log_that_was() -> None:
    _, recovered = opened(written([*entries(2, 9), Commit(3)], [Base(6, 2)]))
    assert recovered == Recovered(6, 2, [], 0, None, 6, 0)


def test_a_base_beyond_the_end() -> None:
    _, recovered = opened(written(entries(2, 9), [Base(60, 5), Entry(61, 5, b"more")]))
    assert recovered == Recovered(60, 5, [(b"more", 61, 5)], 0, None, 60, 0)


def test_a_commit_index_beyond_the_end_is_clamped() -> None:
    _, recovered = opened(written([*entries(2, 4), Commit(90)], entries(5, 6)))
    assert recovered.commit_index == 4


def test_the_commit_index_never_goes_back() -> None:
    _, recovered = opened(written([*entries(2, 4), Commit(4), Commit(2)]))
    assert recovered.commit_index == 4


def test_another_identity_is_refused() -> None:
    directory = written()
    with pytest.raises(WrongIdentityError, match=r"'violin'.*'cello'"):
        opened(directory, identity=Identity("orchestra", "cello"))
    with pytest.raises(WrongIdentityError, match=r"'orchestra'.*'choir'"):
        opened(directory, identity=Identity("choir", "violin"))


@pytest.mark.parametrize("bad", ["", "x" * 2000, "\ud800"])
def test_an_identity_that_cannot_be_written_is_refused(bad: str) -> None:
    directory = VirtualDirectory()
    with pytest.raises(RefusedError):
        opened(directory, identity=Identity("orchestra", bad))
    assert directory.names() == []


def test_files_of_others_are_left_alone() -> None:
    directory = VirtualDirectory()
    directory.put("state.db", b"theirs")
    opened(directory)
    assert directory.content("state.db") == b"theirs"


def test_what_an_ended_process_left_is_cleared_away() -> None:
    directory = written(entries(2, 3))
    directory.put("preparing-spare-0000000000000009", b"half a segm")
    directory.put("preparing-2", bytes(8192))
    directory.put("spare-0000000000000004", bytes(8192))
    directory.put("spare-0000000000000005", bytes(8192))  # one too many
    directory.put("spare-0000000000000003", bytes(4096))  # of another size
    files, recovered = opened(directory)
    assert len(recovered.entries) == 2
    assert directory.names() == [FIRST, "spare-0000000000000004"]
    assert files.size_bytes == 2 * 8192


# Damage


def many_frames() -> tuple[VirtualDirectory, Recovered]:
    """Three segments of frames of all kinds, without a seal."""
    writer, model = Writer(Random(12), large_bytes=4200), Model()
    directory = VirtualDirectory(Random(1))
    files, _ = opened(directory)
    while len(names(directory)) < 3 or len(frames_of(directory, THIRD)) < 4:
        records = writer.frame(model)
        if any(isinstance(record, Base) for record in records):
            continue  # nothing is to be reclaimed
        model = model.after(records)
        files.append(records)
        files.sync()
    assert names(directory) == [FIRST, SECOND, THIRD]
    return directory, model.recovered()


def frames_of(directory: VirtualDirectory, name: str) -> list[tuple[int, int]]:
    """Where the frames of a segment begin and their records end."""
    file = directory.open(name)
    found = [
        (frame.offset, frame.offset + FRAME_BYTES + len(frame.payload))
        for frame in SegmentReader(file).frames()
    ]
    file.close()
    return found


def test_a_changed_byte_is_found_wherever_it_matters() -> None:
    """Each byte that any checksum is to cover, but those of the very last frame."""
    directory, expected = many_frames()
    random = Random(5)
    for name in names(directory):
        frames = frames_of(directory, name)
        if name == THIRD:
            frames.pop()
        places = [*range(HEADER_BYTES)]
        for begin, end in frames:
            places += range(begin, min(begin + 80, end))
            places += random.choices(range(begin, end), k=20)
        for place in places:
            disk = directory.copy()
            disk.content(name)[place] ^= random.randint(1, 255)
            with pytest.raises(DamagedError) as refused:
                opened(disk)
            assert name in refused.value.path
            assert refused.value.offset is not None
            assert refused.value.offset <= place
    assert opened(directory)[1] == expected


def test_a_changed_byte_elsewhere_changes_nothing() -> None:
    """The rest of sectors and the free room: covered by nothing, and of no use to anyone."""
    directory, expected = many_frames()
    for name in names(directory):
        covered = {*range(HEADER_BYTES)}
        for begin, end in frames_of(directory, name):
            covered.update(range(begin, end))
        for place in range(len(directory.content(name))):
            if place not in covered:
                directory.content(name)[place] ^= 0x55
    assert opened(directory)[1] == expected


def test_damage_to_the_last_frame_looks_like_a_power_cut() -> None:
    """The one thing that cannot be told, as the documentation says."""
    directory = written([Entry(2, 1, b"two")], [Entry(3, 1, b"three")])
    begin, end = frames_of(directory, FIRST)[-1]
    for place in range(begin, end):
        disk = directory.copy()
        disk.content(FIRST)[place] ^= 1
        assert opened(disk)[1].entries == [(b"two", 2, 1)]


def test_an_orderly_end_protects_the_last_frame_too() -> None:
    directory = VirtualDirectory()
    files, _ = opened(directory)
    files.append(entries(2, 3))
    files.close()
    _, (begin, end), _ = frames_of(directory, FIRST)
    for place in range(begin, end):
        disk = directory.copy()
        disk.content(FIRST)[place] ^= 1
        with pytest.raises(DamagedError):
            opened(disk)


def test_a_segment_of_another_history_is_refused() -> None:
    """As many frames, as many entries, but another vote in the segment before."""
    mine = written([Vote(1, "viola")], entries(2, 2, 9000))
    other = written([Vote(1, "cello")], entries(2, 2, 9000))
    mine.put(SECOND, bytes(other.content(SECOND)))
    with pytest.raises(DamagedError, match="not where the one before it ended") as refused:
        opened(mine)
    assert refused.value.path.endswith(SECOND)


def test_a_frame_out_of_its_place_is_damage() -> None:
    directory = written(entries(2, 2), entries(3, 3))
    content = directory.content(FIRST)
    _, (begin, _), (last, _) = frames_of(directory, FIRST)
    assert last - begin == SECTOR_BYTES
    frame = content[begin:last]
    # Right after the last one, where the next frame is looked for, and anywhere behind that.
    for place in (last + SECTOR_BYTES, 6 * SECTOR_BYTES, 8192 - SECTOR_BYTES):
        disk = directory.copy()
        disk.content(FIRST)[place : place + len(frame)] = frame
        with pytest.raises(DamagedError, match="there is frame 2 at byte") as refused:
            opened(disk)
        assert refused.value.offset == last + SECTOR_BYTES
    # But no frame begins inside a sector.
    content[5000 : 5000 + len(frame)] = frame
    assert len(opened(directory)[1].entries) == 2


def test_a_frame_with_a_number_left_out_is_damage() -> None:
    directory = written(entries(2, 2))
    files, _ = opened(directory)
    files._next_frame += 1  # noqa: SLF001 - a fault of the program
    files.append(entries(3, 3))
    files.sync()
    with pytest.raises(DamagedError, match="frame 3 is wrong, but there is frame 4"):
        opened(directory)


def test_a_refused_journal_leaves_no_file_open(tmp_path: Path) -> None:
    with OsDirectory(str(tmp_path)) as directory:
        files, _ = JournalFiles.open(directory, IDENTITY, SETTINGS)
        files.close()
        before = sorted(Path("/proc/self/fd").iterdir())
        for _ in range(3):
            with pytest.raises(WrongIdentityError):
                JournalFiles.open(directory, Identity("orchestra", "cello"), SETTINGS)
        assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_terms_of_long_ago_are_forgotten() -> None:
    files, _ = opened(VirtualDirectory())
    for index in range(2, 200):
        files.append([Entry(index, index, b""), Commit(index)])
        files.append([Base(index, index)])
    assert len(files._outline._runs) <= 2  # noqa: SLF001


@pytest.mark.parametrize("seed", range(200))
def test_greater_damage_never_passes_unseen(seed: int) -> None:
    """Pieces of files overwritten, moved or swapped, short of the last frame."""
    directory, expected = many_frames()
    random = Random(seed)
    name = random.choice([FIRST, SECOND])
    content = directory.content(name)
    used = frames_of(directory, name)[-1][1]
    begin = random.randrange(used)
    end = random.randint(begin + 1, used)
    match seed % 4:
        case 0:
            content[begin:end] = bytes(end - begin)
        case 1:
            content[begin:end] = random.randbytes(end - begin)
        case 2:
            content[begin:end] = directory.content(SECOND if name == FIRST else FIRST)[begin:end]
        case _:
            sectors = [content[at : at + SECTOR_BYTES] for at in range(0, used, SECTOR_BYTES)]
            random.shuffle(sectors)
            content[: len(sectors) * SECTOR_BYTES] = b"".join(sectors)
    try:
        recovered = opened(directory)[1]
    except DamagedError:
        return
    assert recovered == expected


def test_a_segment_is_missing() -> None:
    for name, problem in ((FIRST, "entries 2 to"), (SECOND, f"{SECOND} is damaged: this segment")):
        directory, _ = many_frames()
        directory.lose_file(name)
        with pytest.raises(DamagedError, match=problem):
            opened(directory)


def test_no_segment_is_left_but_a_spare_one() -> None:
    directory = written()
    files, _ = opened(directory)
    files.reclaim()
    directory.lose_file(FIRST)
    with pytest.raises(DamagedError, match="spare"):
        opened(directory)


def shorter(content: bytearray) -> None:
    del content[-1:]


def longer(content: bytearray) -> None:
    content += bytes(1)


def emptied(content: bytearray) -> None:
    content.clear()


def zeroed(content: bytearray) -> None:
    content[:] = bytes(len(content))


def of_another_version(content: bytearray) -> None:
    content[8:12] = (0).to_bytes(4, "little")
    content[12:16] = crc32c(content[:12]).to_bytes(4, "little")


def without_a_first_frame(content: bytearray) -> None:
    content[SECTOR_BYTES:] = bytes(len(content) - SECTOR_BYTES)


@pytest.mark.parametrize(
    "damage", [shorter, longer, emptied, zeroed, of_another_version, without_a_first_frame]
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_segment_that_is_none_is_refused_and_left_as_it_is(
    damage: Callable[[bytearray], None], count: int
) -> None:
    directory = written() if count == 1 else many_frames()[0]
    name = names(directory)[-1]
    damage(directory.content(name))
    before = {name: bytes(directory.content(name)) for name in directory.names()}
    with pytest.raises(DamagedError, match=name):
        opened(directory)
    assert {name: bytes(directory.content(name)) for name in directory.names()} == before


def test_a_name_that_is_no_segments_is_refused() -> None:
    directory = written()
    directory.put("segment-1.bak", b"")
    with pytest.raises(DamagedError, match=r"segment-1\.bak"):
        opened(directory)


def test_a_segment_under_another_name_is_refused() -> None:
    directory = written()
    directory.rename(FIRST, SECOND)
    with pytest.raises(DamagedError, match="says that it is segment 1"):
        opened(directory)


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_version_is_told_from_damage(version: int) -> None:
    directory = written()
    content = directory.content(FIRST)
    content[8:12] = version.to_bytes(4, "little")
    with pytest.raises(DamagedError):
        opened(directory.copy())
    content[12:16] = crc32c(content[:12]).to_bytes(4, "little")
    with pytest.raises(
        OtherVersionError, match=f"version {version}, this release reads only {VERSION}"
    ):
        opened(directory)


# Sense


@pytest.mark.parametrize(
    "nonsense",
    [
        [Entry(4, 1, b"")],
        [Entry(9, 1, b"")],
        [Entry(6, 1, b""), Entry(8, 1, b"")],
        [Entry(6, 0, b"")],
        [Entry(6, 2**63, b"")],
        [Truncate(3)],
        [Truncate(1)],
        [Truncate(7)],
        [Vote(2, None)],
        [Vote(3, "cello")],
        [Vote(3, None)],
        [Vote(4, "")],
        [Vote(4, "x" * 2000)],
        [Incarnation(4)],
        [Commit(-1)],
        [Base(1, 0)],
        [Base(2, 2)],
        [Base(3, 2)],
        [Base(9, 0)],
        [Base(4, 1, keeps=False)],
        [Base(9, 1, keeps=True)],
    ],
    ids=str,
)
def test_nonsense_is_refused_before_and_after(
    nonsense: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither written, nor believed when some other program has written it."""
    good: list[Record] = [*entries(2, 5), Commit(3), Vote(3, "viola"), Incarnation(5), Base(2, 1)]
    directory = written(good)
    files, expected = opened(directory)
    with pytest.raises(RefusedError):
        files.append(nonsense)
    with pytest.raises(RefusedError):
        files.append(())
    assert opened(directory)[1] == expected

    files, _ = opened(directory)
    with monkeypatch.context() as patch:
        patch.setattr(type(files._outline), "add", lambda _, record: decided(record))  # noqa: SLF001
        try:
            files.append(nonsense)
        except RefusedError:
            return  # there are no bytes for it
    files.sync()
    directory.kill()
    with pytest.raises(DamagedError) as refused:
        opened(directory)
    assert refused.value.offset == 3 * SECTOR_BYTES


def decided(record: Record) -> Record:
    if isinstance(record, Base) and record.keeps is None:
        return record._replace(keeps=False)
    return record


def test_what_is_no_record_is_refused() -> None:
    files, _ = opened(VirtualDirectory())
    with pytest.raises(RefusedError, match="not records"):
        files.append(["nonsense"])  # type: ignore[list-item]


# Room


def test_a_frame_larger_than_a_segment_gets_one_of_its_own() -> None:
    directory = written(entries(2, 2), entries(3, 3, 50_000), entries(4, 4), entries(5, 5, 5000))
    assert [len(directory.content(name)) for name in names(directory)] == [8192, 53_248, 8192]
    assert [len(command) for command, _, _ in opened(directory)[1].entries] == [
        10,
        50_000,
        10,
        5000,
    ]


def test_a_frame_beyond_the_bound_is_refused_before_anything_is_written() -> None:
    directory = VirtualDirectory()
    files, _ = opened(directory)
    before = bytes(directory.content(FIRST))
    with pytest.raises(TooLargeError) as refused:
        files.append(entries(2, 2, SETTINGS.frame_max_bytes))
    assert refused.value.limit_bytes == SETTINGS.frame_max_bytes
    assert refused.value.size_bytes > SETTINGS.frame_max_bytes
    assert directory.content(FIRST) == before
    assert directory.names() == [FIRST]


def test_a_frame_of_just_the_bound_is_written() -> None:
    overhead = FRAME_BYTES + 21
    directory = written(entries(2, 2, SETTINGS.frame_max_bytes - overhead))
    assert len(opened(directory)[1].entries) == 1


def test_segments_fill_to_the_last_sector() -> None:
    directory = written()
    files, _ = opened(directory)
    free = files._current.free_bytes  # noqa: SLF001
    files.append(entries(2, 2, free - FRAME_BYTES - 21))
    files.sync()
    assert names(directory) == [FIRST]
    files.append(entries(3, 3))
    files.sync()
    assert names(directory) == [FIRST, SECOND]
    assert len(opened(directory)[1].entries) == 2


def test_a_segment_without_room_for_the_seal_ends_without_one() -> None:
    directory = written()
    files, _ = opened(directory)
    files.append(entries(2, 2, files._current.free_bytes - FRAME_BYTES - 21))  # noqa: SLF001
    files.close()
    assert names(directory) == [FIRST]
    assert len(opened(directory)[1].entries) == 1


def test_segments_go_when_a_base_has_passed_them() -> None:
    directory = VirtualDirectory()
    files, _ = opened(directory)
    for index in range(2, 10):
        files.append([*entries(index, index, 3000), Commit(index)])
        files.sync()
    assert names(directory) == [f"segment-{number:016}" for number in (1, 2, 3, 4)]
    files.reclaim()
    assert len(names(directory)) == 4  # no base yet
    files.append([Base(5, 1)])
    files.reclaim()
    assert len(names(directory)) == 4  # not durable yet
    files.sync()
    assert files.wants_reclaim
    files.reclaim()
    assert names(directory) == [f"segment-{number:016}" for number in (3, 4)]
    assert len(names(directory, "spare-")) == 1
    assert files.size_bytes == 3 * 8192
    assert [index for _, index, _ in opened(directory)[1].entries] == [6, 7, 8, 9]


def test_more_old_segments_are_kept_for_reuse_than_new_ones_are_made() -> None:
    directory = VirtualDirectory()
    settings = replace(SETTINGS, recycled_max=3)
    files, _ = opened(directory, settings)
    for index in range(2, 12):
        files.append([*entries(index, index, 3000), Commit(index)])
        files.sync()
    assert len(names(directory)) == 5
    assert not names(directory, "spare-")
    files.reclaim()
    assert len(names(directory, "spare-")) == 1  # made ahead
    files.append([Base(11, 1)])
    files.sync()
    files.reclaim()
    assert len(names(directory, "spare-")) == 3
    assert len(names(directory)) == 1  # the others are gone
    opened(directory, settings)
    assert len(names(directory, "spare-")) == 3
    opened(directory)
    assert len(names(directory, "spare-")) == 1


def test_a_segment_stays_while_a_suffix_of_it_may_be_wanted() -> None:
    """Entries 5 to 7 were cut off, but nothing says so in the segments after them."""
    directory = written(
        entries(2, 7, 1000), [Truncate(5)], entries(5, 5, 4000), entries(6, 6, 4000)
    )
    files, _ = opened(directory)
    files.append([Commit(6), Base(6, 1)])
    files.sync()
    files.reclaim()
    assert names(directory)[0] == FIRST
    files.append([*entries(7, 7), Commit(7), Base(7, 1)])
    files.sync()
    files.reclaim()
    assert names(directory)[0] != FIRST
    assert opened(directory)[1] == Recovered(7, 1, [], 0, None, 7, 0)


def test_a_recycled_file_tells_nothing_of_its_earlier_life() -> None:
    """The old frames stand where the new ones are to come, with the numbers that are to come."""
    first = written(*(entries(index, index) for index in range(2, 6)))
    second = written(*(entries(index, index, 9) for index in range(2, 4)))
    place = frames_of(second, FIRST)[-1][0] + SECTOR_BYTES
    assert place in [begin for begin, _ in frames_of(first, FIRST)]
    second.content(FIRST)[place:] = first.content(FIRST)[place:]
    files, recovered = opened(second)
    assert len(recovered.entries) == 2
    files.append(entries(4, 4, 600))
    files.sync()
    assert len(opened(second)[1].entries) == 3


def test_what_was_cut_off_never_comes_back() -> None:
    """A torn frame has a long tail; a shorter one takes its place."""
    directory = written(entries(2, 2))
    files, _ = opened(directory)
    files.append(entries(3, 8, 400))
    begin, _ = frames_of(directory, FIRST)[-1]
    directory.kill()
    directory.content(FIRST)[begin : begin + SECTOR_BYTES] = bytes(SECTOR_BYTES)
    files, recovered = opened(directory)
    assert len(recovered.entries) == 1
    for index in range(3, 9):
        files.append([Entry(index, 2, b"new")])
        files.sync()
        directory.kill()
        files, recovered = opened(directory)
        assert [term for _, _, term in recovered.entries] == [1] + [2] * (index - 2)


def test_a_frame_whose_sync_failed_is_written_anew() -> None:
    """The kernel says that its pages are clean, the disk does not have them."""
    directory = written(entries(2, 2))
    files, _ = opened(directory)
    files.append(entries(3, 3))
    directory.fail_next(Operation.SYNC, errno.EIO)
    with pytest.raises(StorageError):
        files.sync()
    files, recovered = opened(directory)  # it is read from memory
    assert len(recovered.entries) == 2
    for luck in range(20):
        directory.power_loss(Random(luck))
        assert len(opened(directory)[1].entries) == 2


def test_two_frames_are_never_on_their_way_at_once() -> None:
    directory = written()
    files, _ = opened(directory)
    files.append(entries(2, 2))
    files.append(entries(3, 3))
    directory.power_loss(Random(1))
    assert len(opened(directory)[1].entries) >= 1


def test_a_full_disk_has_no_spare_segments_but_goes_on() -> None:
    directory = written()
    files, _ = opened(directory)
    directory.fail_next(Operation.CREATE, errno.ENOSPC)
    with pytest.raises(DiskFullError):
        files.reclaim()
    files.append(entries(2, 2))
    files.sync()
    assert len(opened(directory)[1].entries) == 1


def test_a_full_disk_stops_a_rotation() -> None:
    directory = written()
    files, _ = opened(directory)
    directory.fail_next(Operation.CREATE, errno.ENOSPC)
    with pytest.raises(DiskFullError):
        files.append(entries(2, 2, 9000))
    with pytest.raises(DiskFullError):
        files.sync()
    files.close()
    assert opened(directory)[1].entries == []


def test_closed_is_closed() -> None:
    files, _ = opened(VirtualDirectory())
    files.close()
    files.close()
    with pytest.raises(ClosedError):
        files.append(())
    with pytest.raises(ClosedError):
        files.sync()
    with pytest.raises(ClosedError):
        files.reclaim()


@pytest.mark.parametrize(
    "values",
    [
        {"segment_bytes": 4096},
        {"segment_bytes": 8193},
        {"frame_max_bytes": 100},
        {"frame_max_bytes": 1 << 32},
        {"spares_max": -1},
        {"recycled_max": -1},
    ],
    ids=str,
)
def test_settings_out_of_bounds(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        JournalSettings(**values)


# The format


GOLDEN_FRAMES: list[list[Record]] = [
    [Incarnation(3), Vote(2, None), Vote(2, "viola")],
    [Entry(2, 1, b"first"), Entry(3, 2, b""), Commit(2)],
    [Truncate(3), Entry(3, 2, b"other"), Base(2, 1)],
]


def test_the_version_is_what_it_was(*, rewrite: bool) -> None:
    directory = VirtualDirectory()
    files, _ = JournalFiles.open(directory, IDENTITY, SETTINGS, make_tag=lambda: b"\x01goldtag")
    for frame in GOLDEN_FRAMES:
        files.append(frame)
        files.sync()
    content = bytes(directory.content(FIRST))
    if rewrite:
        GOLDEN.write_text(dump(content))
    assert dump(content) == GOLDEN.read_text()


def test_the_version_can_be_read() -> None:
    content = bytearray(SETTINGS.segment_bytes)
    for line in GOLDEN.read_text().splitlines():
        place, data = line.split(":")
        line_bytes = bytes.fromhex(data)
        content[int(place, 16) : int(place, 16) + len(line_bytes)] = line_bytes
    directory = VirtualDirectory()
    directory.put(FIRST, bytes(content))
    assert opened(directory)[1] == Recovered(2, 1, [(b"other", 3, 2)], 2, "viola", 2, 3)


def dump(content: bytes) -> str:
    """Sixteen bytes a line; lines of zeros are left out."""
    lines = ((place, content[place : place + 16]) for place in range(0, len(content), 16))
    return "".join(f"{place:04x}: {line.hex(' ')}\n" for place, line in lines if any(line))
