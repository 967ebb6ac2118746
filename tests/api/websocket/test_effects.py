"""What operations have made of sessions, against following them one by one with all that is known.

The node may know less than the cluster: ids that it does not know are left out, and nothing is said
of a session that never was in that epoch.
"""

import random
from typing import Any

import pytest

from api import requests as ask
from api.identifiers import session_text
from api.websocket.effects import Ids, effects_of
from state import Acquired, Created

THEME = 7
KEYS = ("a", "b")
RUNS = 3000
OLDER = 99  # a session that had a key before


class Story:
    """Sessions, operations on them that succeed, and what is true of them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.epochs: dict[int, int] = {}  # of those that are held, by id
        self.stored: dict[int, int] = {}  # epochs of those that are not
        self.key_of: dict[int, str] = {}
        self.newest = self.chance.randint(0, 3)  # epoch of a session with a key that is gone
        self.ids = 0
        self.operations: list[ask.Request] = []
        self.results: list[Any] = []
        for key in KEYS:
            if self.chance.random() < 0.8:
                self.begin(key, is_held=self.chance.random() < 0.6)
        self.keys_before = {key: session_id for session_id, key in self.key_of.items()}
        self.before = dict(self.epochs)
        self.touched: set[tuple[int, int]] = set()
        self.ended: set[int] = set()
        for _ in range(self.chance.randint(1, 6)):
            self.go_on()

    def begin(self, key: str, *, is_held: bool) -> int:
        self.ids += 1
        self.key_of[self.ids] = key
        (self.epochs if is_held else self.stored)[self.ids] = self.newest + is_held
        return self.ids

    def name(self, session_id: int) -> dict[str, Any]:
        if self.chance.random() < 0.5:
            return {"id": session_text(session_id)}
        return {"theme": THEME, "key": self.key_of[session_id]}

    def add(self, operation: ask.Request, result: Any) -> None:
        self.operations.append(operation)
        self.results.append(result)

    def go_on(self) -> None:
        held, free = sorted(self.epochs), sorted(set(KEYS) - set(self.key_of.values()))
        match self.chance.randrange(4):
            case 0 if free:
                session_id = self.begin(self.chance.choice(free), is_held=True)
                key = self.key_of[session_id]
                epoch = self.epochs[session_id]
                self.add(ask.New(theme=THEME, key=key), Created(session_id, epoch, 1, created=True))
            case 1 if self.stored:
                session_id = self.chance.choice(sorted(self.stored))
                self.epochs[session_id] = epoch = self.stored.pop(session_id) + 1
                self.add(ask.Take(**self.name(session_id)), Acquired(session_id, epoch, 2))
            case 2 if held:
                session_id = self.chance.choice(held)
                epoch = self.epochs[session_id]
                self.add(ask.Touch(**self.name(session_id), epoch=epoch), 3)
                if self.before.get(session_id) == epoch:
                    self.touched.add((session_id, epoch))
            case 3 if held:
                session_id = self.chance.choice(held)
                name, epoch = self.name(session_id), self.epochs.pop(session_id)
                self.ended.add(session_id)
                if self.chance.random() < 0.5:
                    self.newest = max(self.newest, epoch)
                    del self.key_of[session_id]
                    self.add(ask.Remove(**name, epoch=epoch), None)
                else:
                    self.stored[session_id] = epoch
                    self.add(ask.Store(**name, epoch=epoch), None)
            case _:
                pass

    @property
    def given(self) -> dict[int, int]:
        """What is held that was not held before in that epoch."""
        return {one: epoch for one, epoch in self.epochs.items() if self.before.get(one) != epoch}

    def ids_known(self, *, is_all: bool) -> Ids:
        """What a node knows of the keys; one that is late may know nothing, or older sessions."""
        found: dict[Any, int] = {}
        for key, session_id in self.keys_before.items():
            target = (THEME, ask.key_of(key))
            is_known = is_all or self.chance.random() < 0.5
            if is_known and session_id in self.before:
                found[target, self.before[session_id]] = session_id
            if is_all:
                found[target, None] = session_id
            elif self.chance.random() < 0.5:
                found[target, None] = OLDER
        return found


@pytest.mark.parametrize("is_late", [False, True])
def test_what_operations_have_made_of_sessions(*, is_late: bool) -> None:
    for seed in range(RUNS):
        story = Story(seed)
        effects = effects_of(story.operations, story.results, story.ids_known(is_all=not is_late))
        touched = set(effects.touched)
        note = f"seed {seed}: {story.operations}"
        if is_late:
            assert touched <= story.touched, note
            # What it has ended may be unknown; then it is found not to be held any more.
            assert effects.given.items() >= story.given.items(), note
            assert effects.ended - {0, OLDER} <= story.ended, note
        else:
            assert touched == story.touched, note
            assert effects.given == story.given, note
            assert effects.ended == story.ended, note
