# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Simulate in other processes, and compare with what this one makes by itself.

``python simulated.py pyro|numpyro loky|dask`` prints a line for every table that is the same;
``python simulated.py pyro|numpyro killed DIRECTORY`` kills a run several times first.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

NAME, HOW, *REST = sys.argv[1:] if __name__ == "__main__" else ["numpyro", ""]
ppl, spread = importlib.import_module(NAME), importlib.import_module(f"{NAME}_spread")
dist = importlib.import_module(f"{NAME}.distributions")
PAUSE = 0.0


def simulator(z):
    time.sleep(PAUSE)
    if z > 1:
        raise ArithmeticError("no")
    return 2 * z


def by_itself(x=None):  # in __main__, with globals
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(simulator(float(z)), 1.0), obs=x)


def closure(scale):
    def together(x=None):
        z = ppl.sample("z", dist.Normal(0.0, scale))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    return together


def with_net():
    """A model whose net has params: in Pyro they are in the store of this process only."""
    if NAME == "numpyro":
        return closure(np.float32(0.5))
    import torch

    ppl.param("loc", torch.tensor(1.0)).data.fill_(7.0)

    def model(x=None):
        loc = ppl.param("loc", torch.tensor(1.0))
        ppl.sample("x", dist.Normal(loc, 0.1), obs=x)

    return model


def assert_same(one, other):
    for site, value in one.values.items():
        np.testing.assert_array_equal(value, other[site])
        assert value.dtype == other[site].dtype
    np.testing.assert_array_equal(one.failed, other.failed)
    print("the same")


def compare(**options):
    for model in (by_itself, closure(3.0), with_net()):
        alone = spread.simulate(model, 60, chunk_size=20, observed="x")
        with_others = spread.simulate(model, 60, chunk_size=20, observed="x", **options)
        assert_same(alone, with_others)


def kill(directory):
    """Kill a run at any moment, several times; then let it end."""
    path = Path(directory, "table.nc")
    for part in (1, 2, 4):  # a chunk more is there at every kill
        child = subprocess.Popen([sys.executable, "-W", "ignore", __file__, NAME, "child", path])
        while len(list(Path(f"{path}.parts").glob("*.nc"))) < part:
            time.sleep(0.02)
            assert child.poll() is None, "it ended before it was killed"
        time.sleep(0.03)  # in the middle of the next chunk, or of its file
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not path.exists()
    table = spread.simulate(by_itself, 200, chunk_size=20, observed="x", path=path)
    assert not Path(f"{path}.parts").exists()
    assert_same(spread.simulate(by_itself, 200, chunk_size=20, observed="x"), table)


if __name__ == "__main__":
    if HOW == "loky":
        compare(num_workers=2)
    elif HOW == "dask":
        import joblib
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        with cluster, Client(cluster), joblib.parallel_config("dask"):
            compare()
    elif HOW == "killed":
        kill(*REST)
    else:
        PAUSE = 0.005
        spread.simulate(by_itself, 200, chunk_size=20, observed="x", path=REST[0])
