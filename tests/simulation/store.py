"""A virtual checkpoint: all or nothing, like `state.db`, and as slow as the seed says."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from cluster.checkpoints import Copy, Done
from cluster.storage.errors import DamagedError, StorageError
from state import Item, StateMachine, load
from tests.simulation.world import VirtualHost, World
from tests.state.disk import Disk

Contents = tuple[Disk, int, int]  # what is written, up to which index, of which term


class Platter:
    """What a checkpoint leaves behind when its process dies."""

    def __init__(self) -> None:
        self.contents: Contents | None = None

    def load(self) -> tuple[StateMachine, int, int] | None:
        if self.contents is None:
            return None
        disk, index, term = self.contents
        return load(iter(disk)), index, term


class VirtualCopy:
    def __init__(self, store: "VirtualStore", data: bytes, index: int, term: int) -> None:
        self._store = store
        self._data = data
        self.index = index
        self.term = term
        self.size_bytes = len(data)
        self.digest = hashlib.blake2b(data, digest_size=32).digest()

    def read(self, offset: int, size: int, then: Callable[[bytes | StorageError], None]) -> None:
        self._store.later(then, self._data[offset : offset + size])

    def release(self) -> None:
        pass


class VirtualArrival:
    def __init__(self, store: "VirtualStore", size_bytes: int) -> None:
        self._store = store
        self._data = bytearray(size_bytes)
        self._contents: Contents | None = None

    def write(self, offset: int, data: bytes, then: Done) -> None:
        self._data[offset : offset + len(data)] = data
        self._store.later(then, None)

    def verify(
        self, digest: bytes, then: Callable[[tuple[StateMachine, int, int] | StorageError], None]
    ) -> None:
        data = bytes(self._data)
        if hashlib.blake2b(data, digest_size=32).digest() != digest:
            self._store.later(then, DamagedError("arrival", "its digest is another"))
            return
        items, index, term = msgpack.unpackb(data, use_list=False)
        disk = Disk()
        disk.write(Item(*item) for item in items)
        self._contents = (disk, index, term)
        self._store.later(then, (load(iter(disk)), index, term))

    def install(self, then: Done) -> None:
        def put() -> None:
            self._store.platter.contents = self._contents
            self._store.later(then, None)

        # As of one thread: after what was asked for before.
        self._store.later(put)

    def discard(self) -> None:
        pass


class VirtualStore:
    """The checkpoint of one life of a node."""

    def __init__(self, world: World, host: VirtualHost, platter: Platter) -> None:
        self._world = world
        self._host = host
        self.platter = platter
        self._items: list[Item] | None = None
        self._next_s = 0.0

    def later(self, then: Callable[..., object], *arguments: Any) -> None:
        """Answer after a while, in order."""
        delay_s = self._world.random.choice((0.0002, 0.001, 0.005))
        self._next_s = max(self._next_s + 1e-7, self._world.now_s + delay_s)
        self._host.call_later(self._next_s - self._world.now_s, then, *arguments)

    def begin(self, then: Done) -> None:
        self._items = []
        self.later(then, None)

    def put(self, items: Sequence[Item], then: Done) -> None:
        assert self._items is not None
        self._items.extend(items)
        self.later(then, None)

    def commit(self, index: int, term: int, then: Done) -> None:
        items, self._items = self._items, None
        assert items is not None

        def write() -> None:
            disk = Disk()
            disk.torn = True
            if self.platter.contents is not None:
                disk.write(self.platter.contents[0])
            disk.write(items)
            self.platter.contents = (disk, index, term)
            self.later(then, None)

        self.later(write)

    def rollback(self, then: Done) -> None:
        self._items = None
        self.later(then, None)

    def copy(self, then: Callable[[Copy | StorageError], None]) -> None:
        if self.platter.contents is None:
            self.later(then, StorageError("there is no checkpoint yet"))
            return
        disk, index, term = self.platter.contents
        data = msgpack.packb((list(disk), index, term))
        self.later(then, VirtualCopy(self, data, index, term))

    def arrive(self, size_bytes: int) -> VirtualArrival:
        return VirtualArrival(self, size_bytes)
