"""An epoch names one session of a key, also when the key has had others."""

from hypothesis import given
from hypothesis import strategies as st

from state import Acquired, Created
from state.errors import LeaseLost
from state.operations import AcquireSession, Append, New, Park, Remove, Store, Txn, Unpark
from tests.state.workload import Machine

KEYS = (b"a", b"b")
ACTS = ("new", "later", "take", "store", "park", "remove", "undone")
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1)), max_size=60)


@given(steps=STEPS)
def test_no_two_sessions_of_a_key_share_an_epoch(steps: list[tuple[str, int]]) -> None:
    machine = Machine()
    shown: dict[tuple[bytes, int], int] = {}
    newest: dict[bytes, int] = {}
    for step, number in steps:
        key = KEYS[number]
        name, epoch = (7, key), newest.get(key, 0)
        match step:
            case "new":
                (result,) = machine.do(New(7, key))
            case "later":
                (result,) = machine.do(New(7, key, repeat_after_ms=0))
            case "take":
                machine.do(Unpark(name))
                (result,) = machine.do(AcquireSession(name))
            case "store":
                (result,) = machine.do(Store(name, epoch, 10**6))
            case "park":
                (result,) = machine.do(Park(name, epoch))
            case "undone":
                (result,) = machine.do(Txn((Remove(name, None), New(7, key), Remove(99, None))))
            case _:
                (result,) = machine.do(Remove(name, None))
        if isinstance(result, Created | Acquired) and result.epoch:
            session_id = shown.setdefault((key, result.epoch), result.session_id)
            assert session_id == result.session_id
            assert result.epoch > epoch
            newest[key] = result.epoch


def test_a_late_operation_by_key_does_nothing_to_the_next_session_of_the_key() -> None:
    machine = Machine()
    machine.do(New(7, b"a"), Remove((7, b"a"), 1), New(7, b"a"))
    (late,) = machine.do(Append((7, b"a"), 1, b"late"))
    assert late == LeaseLost(2, 1, 2)
