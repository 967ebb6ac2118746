"""Two nodes make sure of each other; nobody else can."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.network.errors import Reason, Refused, RefusedByPeer
from cluster.network.handshake import (
    MAJOR,
    MINOR,
    Handshake,
    Hello,
    Kind,
    Role,
    encode_hello,
    encode_proof,
    encode_refusal,
    prove,
)
from cluster.network.settings import Identity
from tests.cluster.network.nodes import CLUSTER, SECRET, handshake, refusal, talk

NONCE = bytes(32)


def dialer(**changes: Any) -> Handshake:
    return handshake(Role.DIALER, changes.pop("node_id", "a"), **changes)


def acceptor(**changes: Any) -> Handshake:
    return handshake(Role.ACCEPTOR, changes.pop("node_id", "b"), **changes)


def values_of(message: bytes) -> list[Any]:
    values: list[Any] = msgpack.unpackb(message)
    return values


@pytest.mark.parametrize("secret", [SECRET, None], ids=["secret", "none"])
def test_two_nodes_of_a_cluster_agree(secret: bytes | None) -> None:
    one, other = dialer(secret=secret, incarnation=7), acceptor(secret=secret, incarnation=9)
    said = talk(one, other)
    assert one.is_done
    assert other.is_done
    assert (one.peer, other.peer) != (None, None)
    assert one.peer is not None
    assert (one.peer.node_id, one.peer.incarnation) == ("b", 9)
    assert other.peer is not None
    assert (other.peer.node_id, other.peer.incarnation) == ("a", 7)
    assert [values_of(one)[0] for one in said] == [Kind.HELLO, Kind.HELLO, Kind.PROOF, Kind.PROOF]
    assert not any(SECRET in message for message in said)


@pytest.mark.parametrize(
    ("theirs", "detail"),
    [
        (b"another secret, as long", "its secret is another one"),
        (None, "it has no secret, this node has one"),
    ],
    ids=["other", "none"],
)
def test_another_secret_is_refused_before_anything_is_shown(
    theirs: bytes | None, detail: str
) -> None:
    one, other = dialer(secret=theirs), acceptor()
    (hello,) = one.opening()
    (answer,) = other.receive(hello)
    (proof,) = one.receive(answer)
    with pytest.raises(Refused) as caught:
        other.receive(proof)
    assert (caught.value.reason, caught.value.detail) == (Reason.SECRET, detail)
    assert not other.is_done


def test_a_node_without_a_secret_says_so_of_one_that_has_one() -> None:
    with pytest.raises(Refused, match="it has a secret, this node has none"):
        talk(dialer(), acceptor(secret=None))


def test_the_dialer_too_refuses_who_has_another_secret() -> None:
    one = dialer()
    (hello,) = one.opening()
    mine = encode_hello(Hello(MAJOR, MINOR, CLUSTER, "b", 1, NONCE))
    one.receive(mine)
    wrong = prove(b"not the secret", Role.ACCEPTOR, hello, mine)
    assert refusal(lambda: one.receive(encode_proof(wrong))) == Reason.SECRET
    assert not one.is_done


def test_another_cluster_is_refused() -> None:
    with pytest.raises(Refused, match="of cluster 'band', this is 'orchestra'") as caught:
        talk(dialer(cluster_id="band"), acceptor())
    assert caught.value.reason is Reason.CLUSTER


def test_a_node_refuses_itself() -> None:
    assert refusal(lambda: talk(dialer(node_id="b"), acceptor())) == Reason.ITSELF


def test_another_major_version_is_refused_whatever_else_it_says() -> None:
    with pytest.raises(Refused, match=r"it speaks protocol 2\.7, this node 1\.0") as caught:
        acceptor().receive(msgpack.packb([Kind.HELLO, 2, 7, {"all": "new"}]))
    assert caught.value.reason is Reason.VERSION


def test_a_later_minor_version_may_say_more() -> None:
    class Later(Handshake):
        """Says what nobody knows yet."""

        def __init__(self) -> None:
            identity = Identity(CLUSTER, "a", 1)
            super().__init__(Role.DIALER, identity, SECRET, vet=_agree, admit=_agree)
            values = values_of(self._hellos[Role.DIALER])
            values[2] += 1
            self._hellos[Role.DIALER] = msgpack.packb([*values, {"compression": ["zstd"]}])

    one, other = Later(), acceptor()
    talk(one, other)
    assert one.is_done
    assert other.is_done
    assert other.peer is not None
    assert other.peer.minor == MINOR + 1


def _agree(_: Hello) -> None:
    pass


def test_a_recorded_handshake_is_of_no_use() -> None:
    hello, _, proof, _ = talk(dialer(), acceptor())
    later = acceptor()
    later.receive(hello)
    assert refusal(lambda: later.receive(proof)) == Reason.SECRET


def test_a_recorded_acceptor_is_of_no_use() -> None:
    _, hello, _, proof = talk(dialer(), acceptor())
    later = dialer()
    later.opening()
    later.receive(hello)
    assert refusal(lambda: later.receive(proof)) == Reason.SECRET


def test_a_proof_sent_back_is_none() -> None:
    one = dialer()
    one.opening()
    (proof,) = one.receive(encode_hello(Hello(MAJOR, MINOR, CLUSTER, "b", 1, NONCE)))
    assert refusal(lambda: one.receive(proof)) == Reason.SECRET


def test_a_hello_sent_back_is_ones_own() -> None:
    one = dialer()
    assert refusal(lambda: one.receive(one.opening()[0])) == Reason.ITSELF


def test_proofs_of_one_side_are_not_those_of_the_other() -> None:
    # Not even when a man in the middle is let to name the hellos as he likes.
    proofs = {prove(SECRET, role, x, y) for role in Role for x, y in [(b"1", b"23"), (b"12", b"3")]}
    assert len(proofs) == 4


@pytest.mark.parametrize("index", [3, 4, 5, 6], ids=["cluster", "node", "incarnation", "nonce"])
def test_what_a_hello_says_cannot_be_changed_on_its_way(index: int) -> None:
    one = dialer()
    other = handshake(Role.ACCEPTOR, "b")
    values = values_of(one.opening()[0])
    original = values[index]
    values[index] = {str: lambda x: x + "x", int: lambda x: x + 1, bytes: lambda x: x[::-1]}[
        type(original)
    ](original)
    if index == 3:
        assert refusal(lambda: other.receive(msgpack.packb(values))) == Reason.CLUSTER
        return
    (answer,) = other.receive(msgpack.packb(values))
    (proof,) = one.receive(answer)
    assert refusal(lambda: other.receive(proof)) == Reason.SECRET


def test_nonces_are_never_the_same() -> None:
    nonces = {values_of(dialer().opening()[0])[6] for _ in range(100)}
    assert len(nonces) == 100
    assert {len(nonce) for nonce in nonces} == {32}


def test_who_is_not_wanted_learns_it_after_proving_who_he_is() -> None:
    asked: list[Hello] = []

    def admit(hello: Hello) -> None:
        asked.append(hello)
        raise Refused(Reason.INCARNATION, "too late")

    other = acceptor(admit=admit)
    one = dialer()
    (answer,) = other.receive(one.opening()[0])
    assert not asked
    (proof,) = one.receive(answer)
    assert refusal(lambda: other.receive(proof)) == Reason.INCARNATION
    assert [hello.node_id for hello in asked] == ["a"]
    assert not other.is_done


@pytest.mark.parametrize("word", [*Reason, "because", 7, None], ids=str)
def test_a_refusal_is_told_in_known_words_only(word: object) -> None:
    one = dialer()
    message = msgpack.packb([Kind.REFUSAL, word])
    with pytest.raises(RefusedByPeer) as caught:
        one.receive(message)
    assert caught.value.reason == (word if word in list(Reason) else "unknown")


@pytest.mark.parametrize("number", [0, 7, 2**63 - 1, -1, 2**63, True, "7", None], ids=repr)
def test_a_refusal_tells_an_incarnation_if_it_is_one(number: object) -> None:
    one = dialer()
    message = msgpack.packb([Kind.REFUSAL, Reason.INCARNATION, number, "what a later version adds"])
    with pytest.raises(RefusedByPeer) as caught:
        one.receive(message)
    told = caught.value.seen_incarnation
    assert told == (number if number in {0, 7, 2**63 - 1} and number is not True else None)


def test_a_refusal_for_an_incarnation_says_which_was_seen() -> None:
    assert values_of(encode_refusal(Reason.INCARNATION, 9)) == [Kind.REFUSAL, "incarnation", 9]
    assert values_of(encode_refusal(Reason.SECRET)) == [Kind.REFUSAL, "secret"]


def test_a_refusal_that_would_be_taken_for_a_payload_is_not_sent() -> None:
    one = dialer()
    before = one.may_explain
    one.receive(encode_hello(Hello(MAJOR, MINOR, CLUSTER, "b", 1, NONCE)))
    assert (before, one.may_explain) == (True, False)
    assert acceptor().may_explain


HELLO = [Kind.HELLO, MAJOR, MINOR, CLUSTER, "a", 1, NONCE]


@pytest.mark.parametrize(
    "values",
    [
        [],
        7,
        {},
        ["hello"],
        [True],
        [Kind.HELLO],
        [Kind.HELLO, MAJOR],
        [Kind.PROOF, b""],
        [4, 5],
        HELLO[:-1],
        *([*HELLO[:i], None, *HELLO[i + 1 :]] for i in range(1, 7)),
        [Kind.HELLO, True, *HELLO[2:]],
        [*HELLO[:2], -1, *HELLO[3:]],
        [*HELLO[:3], "", *HELLO[4:]],
        [*HELLO[:3], "c" * 129, *HELLO[4:]],
        [*HELLO[:4], "", *HELLO[5:]],
        [*HELLO[:4], "n" * 65, *HELLO[5:]],
        [*HELLO[:5], -1, NONCE],
        [*HELLO[:5], 2**63, NONCE],
        [*HELLO[:6], NONCE[1:]],
    ],
    ids=str,
)
def test_what_is_no_hello_is_malformed(values: object) -> None:
    assert refusal(lambda: acceptor().receive(msgpack.packb(values))) == Reason.MALFORMED


@pytest.mark.parametrize("values", [HELLO, [Kind.PROOF], [Kind.PROOF, "text"]], ids=str)
def test_what_is_no_proof_is_malformed(values: object) -> None:
    other = acceptor()
    other.receive(dialer().opening()[0])
    assert refusal(lambda: other.receive(msgpack.packb(values))) == Reason.MALFORMED


MESSAGES = (
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=3),
    ).map(msgpack.packb)
    | st.tuples(
        st.sampled_from([1, 2, 3]),
        st.sampled_from([1, 2]),
        st.just(0),
        st.sampled_from([CLUSTER, "band"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 3),
        st.binary(min_size=31, max_size=32),
    ).map(msgpack.packb)
    | st.binary(max_size=40).map(encode_proof)
    | st.sampled_from(Reason).map(encode_refusal)
)


@given(st.lists(MESSAGES, max_size=4), st.sampled_from(Role))
def test_nobody_gets_in_by_saying_anything(messages: list[bytes], role: Role) -> None:
    shake = handshake(role, "b")
    shake.opening()
    for message in messages:
        try:
            shake.receive(message)
        except (Refused, RefusedByPeer):
            break
    assert not shake.is_done
