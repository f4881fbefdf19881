# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Several processes or devices end with the params of one that has the same batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs"
# Most of these runs is compiling.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

TOLERANCE = 1e-6

PYRO = (
    "spread", "spread_mean_field", "spread_masked", "spread_global_latent",
    "spread_plain_plate", "spread_scaled", "adversarial", "adversarial_two_pass",
    "adversarial_uneven", "spread_levels_told", "adversarial_levels_told",
    "adversarial_learned", "adversarial_annealed", "wasserstein", "wasserstein_masked", "hinge",
    "least_squares_masked", "relativistic_masked", "prior_plain", "prior_adaptive",
    "prior_default_draws", "prior_masked", "prior_masked_shard", "joint", "joint_masked",
    "joint_ali", "joint_npe", "semi_implicit", "mmd", "mmd_masked", "energy", "energy_uneven",
    "sliced", "sliced_masked",
)  # fmt: skip
NUMPYRO = (
    "spread", "spread_mean_field", "spread_renyi", "adversarial", "adversarial_masked",
    "adversarial_coupled", "spread_levels_told", "spread_learned", "adversarial_levels_told",
    "adversarial_learned", "adversarial_annealed", "adversarial_adaptive", "wasserstein",
    "hinge", "least_squares", "relativistic", "unrolled", "prior_plain", "prior_adaptive",
    "joint", "joint_ali", "joint_npe", "semi_implicit", "mmd", "mmd_masked", "energy", "sliced",
    "sliced_masked",
)  # fmt: skip
NUMPYRO_PROCESSES = ("spread", "adversarial_masked", "sliced_masked")


def start(*command, devices=1):
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def finish(*processes):
    """What they printed; all of them must have succeeded."""
    printed = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        assert process.returncode == 0, err
        printed.append(out)
    return printed


def free_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Both backends in one process and on one device."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("pyro", "numpyro")}
    finish(*(start(PROGRAMS / f"{name}_distributed.py", at) for name, at in folders.items()))
    return folders


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    finish(start(*TORCHRUN, PROGRAMS / "pyro_distributed.py", folder))
    return folder


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    finish(start(PROGRAMS / "numpyro_distributed.py", folder, devices=8))
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder, address = tmp_path_factory.mktemp("processes"), free_address()
    program = PROGRAMS / "numpyro_distributed.py"
    finish(*(start(program, folder, address, 2, index) for index in range(2)))
    return folder


def difference(one, other, name):
    """Largest among the params of a run, which must have learned something."""
    one, other = np.load(one / f"{name}.npz"), np.load(other / f"{name}.npz")
    names = [key for key in one.files if not key.startswith("start.")]
    moved = max(np.abs(one[key] - one[f"start.{key}"]).max() for key in names)
    assert moved > 1e3 * TOLERANCE
    assert all(np.array_equal(one[f"start.{key}"], other[f"start.{key}"]) for key in names)
    return max(np.abs(one[key] - other[key]).max() for key in names)


def report(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_every_run_is_looked_at(alone, two_processes):
    assert {path.stem for path in alone["pyro"].glob("*.npz")} == set(PYRO)
    assert {path.stem for path in alone["numpyro"].glob("*.npz")} == set(NUMPYRO)
    assert {path.stem for path in two_processes.glob("*.npz")} == set(NUMPYRO_PROCESSES)


@pytest.mark.parametrize("name", PYRO)
def test_two_gloo_processes_train_as_one(name, alone, two_ranks):
    assert difference(alone["pyro"], two_ranks, name) <= TOLERANCE


@pytest.mark.parametrize("name", NUMPYRO)
def test_eight_devices_train_as_one(name, alone, eight_devices):
    assert difference(alone["numpyro"], eight_devices, name) <= TOLERANCE


@pytest.mark.parametrize("name", NUMPYRO_PROCESSES)
def test_two_jax_processes_train_as_one(name, alone, two_processes):
    assert difference(alone["numpyro"], two_processes, name) <= TOLERANCE


def test_the_ranks_losses_average_to_that_of_the_batch(alone, two_ranks):
    whole = report(alone["pyro"], "rank0")["losses"]
    ranks = [report(two_ranks, f"rank{rank}")["losses"] for rank in range(2)]
    for name in ("spread", "prior_adaptive", "semi_implicit", "wasserstein", "joint"):
        np.testing.assert_allclose(np.mean([r[name] for r in ranks], 0), whole[name], rtol=1e-9)
    for name in ("mmd_masked", "energy", "sliced"):
        for rank in ranks:
            np.testing.assert_allclose(rank[name], whole[name], rtol=1e-9)


def test_what_is_refused_and_what_is_said_on_every_rank(alone, two_ranks):
    for rank in range(2):
        said = report(two_ranks, f"rank{rank}")["said"]
        assert "TraceTailAdaptive_ELBO under several ranks" in said["tail_adaptive"]
        assert "layer 'discriminator.net.0' (BatchNorm1d) normalises by" in said["batch_norm"]
        assert "layer 'head.net.0' (BatchNorm1d) normalises by" in said["head_batch_norm"]
        assert "site 'k' is enumerated outside of all plates" in said["enumerated"]
        assert "ranks 0, 1 hold equal random states" in said["equal_noise"]
        assert said["own_noise"] is None
        assert said["lazy_penalty"] is None
        assert said["own_group"] is None
    assert report(two_ranks, "rank0")["said"]["evaluation"] is None
    assert set(report(alone["pyro"], "rank0")["said"].values()) == {None}


def test_data_on_different_devices_get_different_noise(alone, eight_devices, two_processes):
    one = np.load(alone["numpyro"] / "noise0.npy")
    assert len(np.unique(one)) == one.size
    for folder, devices in ((eight_devices, 8), (two_processes, 2)):
        told = report(folder, "process0")
        assert (told["devices"], told["shards"]) == (devices, devices)
        np.testing.assert_array_equal(np.load(folder / "noise0.npy"), one)


@pytest.mark.parametrize("loss", ["spread", "adversarial", "mmd"])
def test_torchrun_example(loss, tmp_path):
    example = ROOT / "examples" / "pyro" / "distributed.py"
    options = ("--smoke-test", "--loss", loss, "--output", tmp_path)
    (printed,) = finish(start(*TORCHRUN, example, *options))
    assert "step 8: " in printed
    summary = report(tmp_path, "summary")
    assert summary["world_size"] == 2
    assert summary["params_differ_by"] == 0
    assert np.isfinite(summary["held_out_loss"])
    assert len(set(summary["next_draw_of_each_rank"])) == 2


def test_lightning_example(tmp_path):
    pytest.importorskip("lightning")
    example = ROOT / "examples" / "pyro" / "distributed_lightning.py"
    options = ("--smoke-test", "--devices", 2, "--loss", "adversarial", "--output", tmp_path)
    finish(start(example, *options))
    summary = report(tmp_path, "summary")
    assert (summary["world_size"], summary["steps"]) == (2, 8)
    assert len(set(summary["params_norm_of_each_rank"])) == 1
    assert len(set(summary["next_draw_of_each_rank"])) == 2
    assert np.isfinite(summary["held_out_loss"])


def test_sharding_example(tmp_path):
    example = ROOT / "examples" / "numpyro" / "distributed.py"
    options = ("--smoke-test", "--loss", "mmd", "--output", tmp_path)
    finish(start(example, *options, devices=8))
    summary = report(tmp_path, "summary")
    assert (summary["num_devices"], summary["num_processes"]) == (8, 1)
    assert len(set(summary["noise_on_each_device"])) == 8
    assert np.isfinite(summary["held_out_loss"])


def test_sharding_example_with_two_processes(tmp_path):
    example, address = ROOT / "examples" / "numpyro" / "distributed.py", free_address()
    options = ("--smoke-test", "--loss", "adversarial", "--output", tmp_path)
    shared = ("--coordinator", address, "--num-processes", 2, "--process-id")
    finish(*(start(example, *options, *shared, index) for index in range(2)))
    summary = report(tmp_path, "summary")
    assert (summary["num_devices"], summary["num_processes"]) == (2, 2)
    assert summary["params_differ_by"] == 0
    assert np.isfinite(summary["held_out_loss"])
