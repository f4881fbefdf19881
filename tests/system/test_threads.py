# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Two SVIs in two threads: their critics and caches stay apart."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_spread import AdversarialDivergence, concat_sites, finite_guard, two_player
from pyro_spread._snapshot import StepSnapshot
from spread_core.remembered import Remembered

X = torch.linspace(-1.0, 2.0, 16)

pytestmark = pytest.mark.slow


class Run:
    """A run with params and a critic of its own; takes its turns under a lock."""

    def __init__(self, index, name=None, guarded=False):
        torch.manual_seed(index)
        self.rng_state = torch.get_rng_state()
        self.critic = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.index = index
        loss = AdversarialDivergence(concat_sites(self.critic, "x"), name=name or f"critic{index}")
        adam = two_player(
            pyro.optim.Adam({"lr": 1e-2}), pyro.optim.Adam({"lr": 1e-2}), name=loss.name
        )
        self.svi = SVI(self.model, self.guide, adam, loss)
        if guarded:
            finite_guard(self.svi, "skip")

    def model(self, x):
        w = pyro.param(f"w{self.index}", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(w * z + self.index), obs=x)

    def guide(self, x):
        pass

    def step(self, x):
        # The random state is the process's too.
        torch.set_rng_state(self.rng_state)
        loss = self.svi.step(x)
        self.rng_state = torch.get_rng_state()
        return loss

    def result(self):
        state = {f"w{self.index}": pyro.param(f"w{self.index}").detach().clone()}
        return state | {k: v.clone() for k, v in self.critic.state_dict().items()}


@pytest.mark.parametrize("guarded", [False, True])
def test_runs_that_take_turns_are_those_alone(guarded):
    alone = []
    for index in range(2):
        pyro.clear_param_store()
        run = Run(index, guarded=guarded)
        for _ in range(20):
            run.step(X)
        alone.append(run.result())

    pyro.clear_param_store()
    runs, lock = [Run(index, guarded=guarded) for index in range(2)], threading.Lock()
    turns = threading.Barrier(2)

    def train(run):
        for _ in range(20):
            turns.wait()  # both are always in the middle of their runs
            with lock:
                run.step(X)
        return run.result()

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(train, runs))
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_one_name_for_two_critics_is_refused_in_another_thread_too():
    pyro.clear_param_store()
    first, second = Run(0, "critic"), Run(1, "critic")
    first.step(X)
    before = first.result()
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(second.step, X).exception()
    assert isinstance(error, ValueError)
    assert "stale critic would be trained" in str(error)
    assert "name='...'" in str(error)
    torch.testing.assert_close(first.result(), before, rtol=0, atol=0)


def test_buffers_of_other_threads_are_left_alone():
    norm = nn.BatchNorm1d(2)
    with StepSnapshot() as kept, ThreadPoolExecutor(1) as pool:
        pool.submit(norm, torch.randn(8, 2)).result()
    kept.restore()
    assert int(norm.num_batches_tracked) == 1


def test_caches_by_function_take_many_threads():
    known = Remembered()
    errors = []

    def work(index):
        try:
            for i in range(2000):

                def fn(i=i):
                    return i

                known.keep(fn, i)
                assert known.get(fn) == i
                if i % 3 == 0:
                    known.forget(fn)
                    assert known.get(fn) is None
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_numpyro_in_two_threads():
    program = Path(__file__).parents[1] / "programs" / "numpyro_threads.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal", "equal"]
