# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Threads, seeds and clean parameter stores for every test."""

import gc
import importlib.metadata
import os
import sys
import tempfile

import pytest

# Before the backends start their thread pools.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Where in Python an operation came from is written into every program, and nobody reads it here.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
if "slow" not in sys.argv:
    # Most of a short test is compiling. Tests that train for minutes want fast code instead.
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    try:
        # An unknown flag ends the process, and this one is not promised to stay.
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            flags.append("--xla_cpu_use_fusion_emitters=false")
            flags.append("--xla_cpu_parallel_codegen_split_count=1")
    except importlib.metadata.PackageNotFoundError:
        pass
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))


# JAX keeps what it compiles for as long as this process lives: files of tests share many small
# programs. Every worker has a folder of its own, since nothing guards an entry half written; it
# inherits the variables of the process that started it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ or "COMPILED_FOR_TESTS" in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    _KEEPING = {
        "JAX_COMPILATION_CACHE_DIR": _COMPILED.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COMPILED_FOR_TESTS": "1",
    }
    os.environ.update(_KEEPING)
else:
    _KEEPING = {}


def pytest_collection_finish():
    """Spare the collector what was imported: none of it is freed, and walking it takes time."""
    for variable in _KEEPING:  # JAX has read it; processes that tests start, and kill, shall not
        os.environ.pop(variable, None)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_pyro():
    """No test sees another's params or random state; tests without Pyro never import it."""
    if "pyro" in sys.modules:
        import pyro

        pyro.clear_param_store()
        pyro.set_rng_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _no_old_programs():
    """
    Drop what JAX compiled for a module from memory, which thousands of programs fill and slow.
    """
    yield
    if "jax" in sys.modules:
        import jax

        jax.clear_caches()
        gc.collect()
