"""Whether one of the host's sockets that the keeper has made may be in the sandbox."""

from __future__ import annotations

import array
import socket
import time

from portwrap.keeper.outbound import Given

NOT_OPEN = 1 << 20


def look(given: Given) -> bool:
    """It looks no more than once a second."""
    given.look_at = 0.0
    return given.are_there()


def test_none() -> None:
    given = Given()
    assert not given.are_there()
    given.files.close()


def test_as_long_as_somebody_has_one() -> None:
    given = Given()
    for _ in range(2):
        with socket.socket() as one, socket.socket() as other:
            given.add(one.fileno())
            given.add(other.fileno())
            with one.dup():
                other.close()
                one.close()
                assert look(given)
            assert given.are_there()  # as far as it knows
        assert not look(given)
        assert not given.are_there()
    given.files.close()


def test_one_that_is_in_a_message() -> None:
    given = Given()
    sender, receiver = socket.socketpair()
    with sender, receiver:
        with socket.socket() as made:
            given.add(made.fileno())
            rights = array.array("i", [made.fileno()])
            sender.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert look(given)
    assert not look(given)
    given.files.close()


def test_where_it_cannot_be_known() -> None:
    """As where the account's epolls are full: then one may always be there."""
    given = Given()
    given.add(NOT_OPEN)
    before = given.look_at
    assert given.are_there() and given.are_there()
    assert given.look_at == before > time.monotonic()
    given.files.close()
