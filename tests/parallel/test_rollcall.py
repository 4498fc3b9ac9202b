"""Processes that do not come are named, and one that dies or fails is missed by all, at once."""

import socket
import threading
import time

import pytest

from vdm_jax.config import UserError
from vdm_jax.parallel import rollcall
from vdm_jax.parallel.hosts import HostError
from vdm_jax.parallel.rollcall import Line, Place, take, watch


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(*works):
    """What each work returns, or raises, run at the same time."""
    found = [None] * len(works)

    def run(index, work):
        try:
            found[index] = work()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def place(port, index, count=3, host="localhost"):
    return Place(host=host, port=port, index=index, count=count)


def called(port, count=3):
    return together(*(lambda n=n: take(place(port, n, count), 20) for n in range(count)))


def test_all_come_in_any_order(port):
    first = []
    late = threading.Timer(0.5, lambda: first.append(take(place(port, 0), 20)))
    late.start()
    lines = together(lambda: take(place(port, 2), 20), lambda: take(place(port, 1), 20))
    late.join()
    assert sorted(first[0]) == [1, 2] and [list(one) for one in lines] == [[0], [0]]
    # The port is JAX's from here on, though the lines stay open.
    rollcall._listen(place(port, 0)).close()


def test_who_did_not_come_is_named_to_all(port):
    zero, two = together(lambda: take(place(port, 0), 1), lambda: take(place(port, 2), 20))
    for error in (zero, two):
        assert isinstance(error, HostError) and error.code == 77
        assert str(error).startswith(
            f"1 of 3 processes did not come to localhost:{port} within 1 s"
        )
        assert "(number 1)" in str(error)


def test_a_taken_port_is_said(port):
    with socket.create_server(("", port)), pytest.raises(HostError, match=f"port {port}.*in use"):
        take(place(port, 0), 5)


@pytest.mark.parametrize(
    "host, words", [("localhost", "nobody answers"), ("nowhere.invalid", "no host 'nowhere")]
)
def test_a_wrong_address_is_said(port, host, words):
    start = time.monotonic()
    with pytest.raises(HostError, match=words) as caught:
        take(place(port, 1, host=host), 0.5)
    assert f"{host}:{port}" in str(caught.value) and time.monotonic() - start < 15


def test_a_stranger_at_the_address_is_said(port):
    """Another program has the port, and says nothing that makes sense."""
    with socket.create_server(("localhost", port)) as other:

        def answer():
            with other.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HostError, match="no process of this run"):
            take(place(port, 1), 0.3)
        thread.join()


def test_strangers_do_not_disturb(port):
    def stranger():
        time.sleep(0.2)
        with socket.create_connection(("localhost", port)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.settimeout(10)
            return connection.recv(100)

    zero, one, said = together(
        lambda: take(place(port, 0, 2), 20),
        lambda: time.sleep(1) or take(place(port, 1, 2), 20),
        stranger,
    )
    assert list(zero) == [1] and list(one) == [0] and said == b""


def test_who_died_waiting_may_come_again(port):
    def dies_first():
        with socket.create_connection(("localhost", port)) as connection:
            connection.sendall(b'{"process": 1, "processes": 3}\n')
            time.sleep(0.3)
        return take(place(port, 1), 20)

    lines = together(
        lambda: take(place(port, 0), 20),
        lambda: time.sleep(0.2) or dies_first(),
        lambda: time.sleep(1.5) or take(place(port, 2), 20),
    )
    assert sorted(lines[0]) == [1, 2] and list(lines[1]) == [0]


@pytest.mark.parametrize("index, count", [(1, 4), (1, 3)])
def test_two_of_one_number_or_of_another_run_are_refused(port, index, count):
    found = together(
        lambda: take(place(port, 0), 10),
        lambda: take(place(port, 1), 10),
        lambda: time.sleep(0.5) or take(place(port, index, count), 10),
    )
    assert all(isinstance(error, UserError) and error.code == 2 for error in found)
    assert "each once" in str(found[0])


def watched(port, works, count=3):
    """Run a work on each process under `watch`: (what it raised, (words, code) of its end)."""
    lines, ends = called(port, count), [[] for _ in range(count)]

    def run(n):
        with watch(place(port, n, count), lines[n], lambda *said: ends[n].append(said)):
            works[n](lines[n])
            if works[n] is wait:
                until = time.monotonic() + 20
                while not ends[n] and time.monotonic() < until:
                    time.sleep(0.02)

    return together(*(lambda n=n: run(n) for n in range(count))), ends


def wait(lines):
    pass


def hang_up(lines):
    """As the kernel does for a process that is killed: from then on it says nothing to anybody."""
    for how in (socket.SHUT_WR, socket.SHUT_RD):
        for line in lines.values():
            line.socket.shutdown(how)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(rollcall, "GRACE_S", 0.3)
    monkeypatch.setattr(rollcall.atexit, "register", lambda *_: None)


@pytest.mark.parametrize("victim", [0, 2])
def test_one_that_is_gone_ends_all_others(port, victim, quick):
    def die(lines):
        hang_up(lines)
        raise OSError("killed")

    works = [die if n == victim else wait for n in range(3)]
    start = time.monotonic()
    _, ends = watched(port, works)
    assert time.monotonic() - start < 10
    for n in {0, 1, 2} - {victim}:
        ((words, code),) = ends[n]
        assert code == 77 and words.startswith(f"process {victim} is gone")


@pytest.mark.parametrize("victim", [0, 1])
def test_what_one_fails_of_is_told_with_its_code(port, victim, quick):
    def fail(lines):
        raise UserError("too much of the data is bad", code=3)

    works = [fail if n == victim else wait for n in range(3)]
    raised, ends = watched(port, works)
    assert str(raised[victim]) == "too much of the data is bad" and not ends[victim]
    for n in {0, 1, 2} - {victim}:
        assert ends[n] == [(f"process {victim} failed: too much of the data is bad", 3)]


def test_who_stumbles_over_a_death_tells_of_the_death(port, quick, monkeypatch):
    """A collective breaks first, with words that name nobody."""
    monkeypatch.setattr(rollcall, "GRACE_S", 5.0)  # the death is heard of long before

    def die(lines):
        time.sleep(0.2)
        hang_up(lines)

    def stumble(lines):
        raise RuntimeError("connection closed by peer [10.0.0.2]:1234")

    raised, ends = watched(port, [stumble, die, stumble])
    for n in (0, 2):
        assert isinstance(raised[n], HostError) and raised[n].code == 77 and not ends[n]
        assert str(raised[n]).startswith("process 1 is gone")


def test_who_is_done_is_not_missed(port, quick):
    def done(lines):
        pass

    raised, ends = watched(port, [done, done, lambda lines: time.sleep(1)])
    assert raised == [None] * 3 and ends == [[], [], []]


def test_a_line_has_an_end(port):
    """Endless lines, and what is no JSON object, are nobody's words."""
    for sent in (b"x" * (rollcall.LONGEST + 1), b"[1]\n", b"\xff\n"):
        with socket.create_server(("localhost", port)) as server:
            one = socket.create_connection(("localhost", port))
            one.sendall(sent)
            with server.accept()[0] as other:
                assert Line(other).hear(5) is None
            one.close()
