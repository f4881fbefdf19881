# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train one method on one table of simulations, and draw at every observation.

``sbi_run.py`` starts a process for every such unit, so that each compiles what it needs, has the
machine's caches to itself, and can fail alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
    os.environ[_variable] = "1"
# Compiling belongs to the cost of a training: no result of an earlier process is taken over.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
_flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_flags} --xla_cpu_multi_thread_eigen=false".strip()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from sbi_methods import METHODS  # noqa: E402
from studies.sbi_tasks import SBI_TASKS  # noqa: E402
from studies.sbi_tasks.observations import available, load_observation  # noqa: E402


def work(unit: dict[str, Any]) -> dict[str, Any]:
    """Seconds of training and drawing; the draws go to ``unit["draws"]``, theta by observation."""
    task, seed = SBI_TASKS[unit["task"]], unit["seed"]
    start_method = METHODS[unit["method"]]()
    theta, x = task.run_prior(unit["num_simulations"], seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wall, cpu = time.perf_counter(), time.process_time()
        draw = start_method(task, theta, x, seed)
        row = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    messages = {str(one.message) for one in caught if issubclass(one.category, UserWarning)}
    draws, cpu = {}, time.process_time()
    for number in available(task, unit["data_dir"]):
        observed = load_observation(task, number, unit["data_dir"], 1).x
        draws[str(number)] = np.asarray(draw(observed, unit["num_draws"]))
        assert draws[str(number)].shape == (unit["num_draws"], task.dim)
    row["drawing_cpu"] = time.process_time() - cpu
    row["warnings"] = sorted(messages)
    np.savez(Path(unit["draws"]).with_suffix(".part.npz"), **draws)
    # All or nothing: a killed run leaves no half file under the final name.
    Path(unit["draws"]).with_suffix(".part.npz").replace(unit["draws"])
    return row


if __name__ == "__main__":
    answer = work(json.loads(sys.argv[1]))
    print(json.dumps(answer))
