"""Releases in real processes: killed with signal 9, on a full disk, started twice; a script for test_release_processes.

It prints what each of its processes left, as JSON. Processes are forked, so that packages are imported once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
SHARE = {"sampler": "ddim", "steps": 2, "seed": 3, "progress": False}
COUNT = 11  # six batches of two, the last one padded


def forked(work) -> int:
    """Start a process that does ``work`` and says in one line what was wrong."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    from brainldm_core.errors import BrainLDMError

    try:
        work()
    except BrainLDMError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)
    os._exit(0)


def ended(process: int) -> int:
    """Exit code of a process; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def drawn(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "batches").glob("*.json"))


def sums(out: Path) -> str | None:
    return (out / "SHA256SUMS").read_text() if (out / "SHA256SUMS").exists() else None


def main(root: Path) -> dict:
    import torch
    from test_sampling import rows, untrained_pipeline

    from brainldm_core import release, release_write

    torch.set_num_threads(1)
    pipeline = untrained_pipeline({"unet": "0"}, {"cohort": "atlas"})
    requests = release.draw_requests(rows(6), COUNT, seed=1)

    def draw(out: Path, finish: bool = True, **more) -> None:
        release.release_shard(pipeline, requests, out, **SHARE, **more)
        if finish and not release.missing_batches(out):
            release.finish_release(out)

    def draw_and_die(out: Path, volumes: int) -> None:
        """Be killed half way through the writing of a volume."""
        seen, whole = [], Path.write_bytes

        def write(path: Path, content: bytes) -> int:
            if path.suffix == ".gz":
                seen.append(path)
                if len(seen) == volumes:
                    whole(path, content[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return whole(path, content)

        Path.write_bytes = write
        draw(out)

    said = {"whole": [ended(forked(lambda: draw(root / "whole")))], "sums": sums(root / "whole")}

    out = root / "killed"
    said["killed"] = []
    for volumes in (2, 4, 7):
        code = ended(forked(lambda volumes=volumes: draw_and_die(out, volumes)))
        said["killed"].append([code, drawn(out), len(list(out.rglob(".partial-*")))])
    said["killed_end"] = [ended(forked(lambda: draw(out))), sums(out), len(list(out.rglob(".partial-*")))]

    # One shard twice at once: each process notes the batches that it draws.
    out, batch = root / "twice", release.draw_batch

    def noting(*given):
        with open(root / f"{os.getpid()}.txt", "a") as file:
            file.write(f"{given[4]}\n")
        time.sleep(0.3)  # as long as a drawing, so that both are at work
        return batch(*given)

    release.draw_batch = noting
    both = [forked(lambda: draw(out, finish=False)) for _ in range(2)]
    said["twice"] = [[ended(process) for process in both]]
    said["twice"] += [[int(line) for line in (root / f"{process}.txt").read_text().split()] for process in both]
    said["twice_end"] = [ended(forked(lambda: draw(out))), sums(out)]

    # Killed with a writer at work: the writer must follow, and its claim be free.
    def with_writer() -> None:
        begin = release_write.ProcessPoolExecutor.submit

        def submit(executor, *rest):
            future = begin(executor, *rest)
            if not (root / "writer.txt").exists():
                (root / "writer.txt").write_text(" ".join(map(str, executor._processes)))
            return future

        release_write.ProcessPoolExecutor.submit = submit
        draw(root / "orphan", workers=1)

    process = forked(with_writer)
    end = time.monotonic() + 300
    while not drawn(root / "orphan") and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    writers = [int(word) for word in (root / "writer.txt").read_text().split()]
    said["orphan"] = [ended(process), len(writers)]
    while (left := [pid for pid in writers if Path(f"/proc/{pid}").exists() and alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    said["orphan"] += [len(left), ended(forked(lambda: draw(root / "orphan"))), sums(root / "orphan")]

    # A disk of its own, in the name space that the test has put us in.
    if os.environ.get("OWN_MOUNTS"):
        disk = root / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=True)
        (disk / "ballast").write_bytes(bytes(int(os.environ["OWN_MOUNTS"]) * 1024))
        said["full"] = [ended(forked(lambda: draw(disk / "set"))), drawn(disk / "set")]
        said["full_partial"] = len(list(disk.rglob(".partial-*")))
        (disk / "ballast").unlink()
        said["full_end"] = [ended(forked(lambda: draw(disk / "set"))), sums(disk / "set")]
    return said


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
