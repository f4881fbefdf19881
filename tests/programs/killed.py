# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Kills training programs with SIGKILL until a number of kills is reached, then lets them finish.

``python killed.py pyro|numpyro DIRECTORY KILLS SEED`` prints what happened as JSON. The library is
imported once, and every life of a program is a fork of a process that has not computed anything:
what a program does from its first line to its end is that of a fresh process.
"""

import builtins
import importlib
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

STEPS, EVERY = 60, 2
# What the libraries import when they are used first, which takes a second in every life.
LATE_IMPORTS = {"pyro": ["torch._dynamo", "safetensors.torch"], "numpyro": ["safetensors.numpy"]}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_line(number):
    """Die when the ``number``-th line of the function that writes files is reached."""
    from spread_core import checkpoint_file

    left = [number]

    def lines(frame, event, arg):
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                die()
        return lines

    write = checkpoint_file.write.__code__
    sys.settrace(lambda frame, *_: lines if frame.f_code is write else None)


def kill_in_the_middle(number):
    """Die when some of the bytes of the ``number``-th file are on the disk and others not."""
    from spread_core import checkpoint_file

    left = [number]

    class HalfWritten:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            left[0] -= 1
            if left[0] == 0:
                self._file.write(data[: random.randrange(len(data))])
                self._file.flush()
                die()
            return self._file.write(data)

    def open_file(path, mode):
        file = builtins.open(path, mode)  # noqa: SIM115
        return HalfWritten(file) if "r" not in mode else file

    checkpoint_file.open = open_file


def life(train, kind, directory, fault, pipe):
    """One process; returns in the child only."""
    try:
        if fault is not None:
            fault[0](fault[1])
        train(kind, directory, STEPS, EVERY, lambda step: os.write(pipe, b"."))
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def run(train, kind, directory, fault=None, kill_after=None):
    """How the program ended: the signal's negative number, or its exit status."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks with threads: there are none yet
        child = os.fork()
    if child == 0:
        os.close(reading)
        life(train, kind, directory, fault, writing)
    os.close(writing)
    seen = 0
    while byte := os.read(reading, 1):
        seen += len(byte)
        if seen == kill_after:
            time.sleep(random.random() * 0.02)  # a step or a save is under way
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest(directory):
    return max(Path(directory).glob("*.safetensors"), default=None)


def faults(kills):
    """What kills each life: half of them the parent, at some time; the others the program."""
    for i in range(kills):
        if i % 2 == 0:
            yield "anywhere", None, random.randrange(1, 9)
        elif i % 8 == 7:
            yield "half a file", (kill_in_the_middle, random.randrange(1, 4)), None
        else:
            yield "while saving", (kill_at_line, random.randrange(1, 110)), None


def main(backend, root, kills, seed):
    random.seed(seed)
    # Compiled once as far as possible, since steps that report to the host are not kept; and then
    # without the passes that take long.
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(root, "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    for name in [f"{backend}_checkpointed", *LATE_IMPORTS[backend]]:
        importlib.import_module(name)
    program = sys.modules[f"{backend}_checkpointed"]
    report = {"kills": {}, "leftovers": 0, "resumed_from": [], "runs": 0, "equal": []}
    for kind in program.KINDS:
        reference = Path(root, f"{kind}-reference")
        assert run(program.train, kind, reference) == 0
        pending, number = list(faults(kills // len(program.KINDS))), 0
        while pending:
            directory = Path(root, f"{kind}-{number}")
            number += 1
            assert number <= kills, f"{kind}: {pending[0][0]} kills nothing"
            status = -signal.SIGKILL
            while status == -signal.SIGKILL:
                what, fault, kill_after = pending[0] if pending else (None, None, None)
                status = run(program.train, kind, directory, fault, kill_after)
                if status == -signal.SIGKILL:
                    pending.pop(0)
                    report["kills"][what] = report["kills"].get(what, 0) + 1
                    report["leftovers"] += len(list(directory.glob(".*.tmp")))
                    report["resumed_from"].append(str(newest(directory)).partition("step-")[2])
            assert status == 0, f"{kind}: exit status {status}"
            report["runs"] += 1
            same = newest(directory).read_bytes() == newest(reference).read_bytes()
            assert newest(directory).name.endswith(f"step-{STEPS}.safetensors")
            report["equal"].append(same)
    print(json.dumps(report))


if __name__ == "__main__":
    backend, root, kills, seed = sys.argv[1:]
    main(backend, root, int(kills), int(seed))
