"""Claims: one process has a piece at a time, and a killed one has none."""

import os
import signal

from brainldm_core.claims import give_back, open_claims, take


def child(path, piece):
    """A process that tries to take a piece: its exit code is 0 if it could."""
    if not (process := os.fork()):
        with open_claims(path) as claims:
            os._exit(0 if take(claims, piece) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_piece_is_taken_once_until_it_is_given_back(tmp_path):
    path = tmp_path / "set" / "claims.lock"
    with open_claims(path) as claims:
        assert take(claims, 3) and take(claims, 30_000)
        assert [child(path, piece) for piece in (2, 3, 4, 30_000)] == [0, 1, 0, 1]
        give_back(claims, 3)
        assert child(path, 3) == 0
    assert child(path, 30_000) == 0 and path.stat().st_size == 0


def test_a_killed_process_holds_nothing(tmp_path):
    path, (ready, told) = tmp_path / "claims.lock", os.pipe()
    if not (process := os.fork()):
        with open_claims(path) as claims:
            take(claims, 5)
            os.write(told, b"x")
            signal.pause()
    os.read(ready, 1)
    assert child(path, 5) == 1
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert child(path, 5) == 0
