"""Trainings in processes of their own, several at one training or killed on the way; a script for test_processes.

It reads jobs as JSON from standard input and prints the exit codes of each job's processes. Processes are forked, so
that packages are imported once; one thread each, so that two runs of the same steps give the same bits.
"""

import importlib.util
import json
import os
import socket
import sys

# Much of this is imported late; here it is imported once, before the forks.
import accelerate  # noqa: F401
import generative.networks.nets  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp

if importlib.util.find_spec("tensorboard"):
    import torch.utils.tensorboard

from brainldm_core import baselines, brain_age, cli, loop, networks, sweeps, training  # noqa: F401


def kill_at(step: int, number: int) -> None:
    """Send this process a signal as soon as the state of ``step`` is on the disk."""
    save = loop._save

    def save_then_die(folder, key, networks, optimisers, average, done, *rest):
        save(folder, key, networks, optimisers, average, done, *rest)
        if done == step:
            os.kill(os.getpid(), number)

    loop._save = save_then_die


def descend_plainly() -> None:
    """Gradients into weights as they are: Adam would make a step of every rounding error, and so would bfloat16."""
    for module in (training, baselines, brain_age):
        module.adamw = lambda parameters, plan, rate=None: torch.optim.SGD(parameters, rate or plan.learning_rate)
    for module in (networks, training):
        module.mixed_precision = lambda device=None: "no"
    baselines.fit = lambda *arguments, **named: loop.fit(
        *arguments[:-1], **named
    )  # to the last step, whatever the time


def work(words: list[str], environment: dict[str, str], kill: dict | None, plain: bool) -> None:
    """Be the command ``brainldm`` with ``words``."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    if plain:
        descend_plainly()
    if kill:
        kill_at(**kill)
    try:
        code = cli.main(words)
    except SystemExit as stopped:
        code = stopped.code
    sys.stdout.flush()
    os._exit(code)


def start(words: list[str], processes: int = 1, kill: dict | None = None, plain: bool = False) -> list[int]:
    """Exit codes of processes that work together; of one that is killed, minus the signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        child = os.fork()
        if not child:
            work(words, {key: str(value) for key, value in place.items()} if processes > 1 else {}, kill, plain)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(json.dumps([start(**job) for job in json.load(sys.stdin)]))
