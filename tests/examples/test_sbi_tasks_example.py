# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The tasks as programs of both backends: their priors and simulators, and the example itself."""

import importlib.util

import numpy as np
import pytest
from example_runs import ROOT, run_example, summary
from studies.sbi_tasks import SBI_TASKS


def example(backend):
    """The module of the example."""
    pytest.importorskip(backend)
    path = ROOT / "examples" / backend / "sbi_tasks.py"
    spec = importlib.util.spec_from_file_location(f"{backend}_sbi_tasks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_program(backend, task, x=None):
    """The sites of one run: name to distribution and value, in NumPy."""
    model = example(backend).program(task)
    if backend == "numpyro":
        from numpyro import handlers

        trace = handlers.trace(handlers.seed(model, 0)).get_trace(x)
    else:
        import pyro
        import torch

        pyro.set_rng_seed(0)
        x = None if x is None else torch.as_tensor(x)
        trace = pyro.poutine.trace(model).get_trace(x).nodes
    return {
        name: (site["fn"], np.asarray(site["value"]), site["is_observed"])
        for name, site in trace.items()
        if site["type"] == "sample"
    }


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
@pytest.mark.parametrize("name", list(SBI_TASKS))
def test_the_program_is_the_task(backend, name):
    task = SBI_TASKS[name]
    sites = run_program(backend, task)
    observed = {site: seen for site, (_, _, seen) in sites.items() if site in (*task.priors, "x")}
    assert observed == dict.fromkeys((*task.priors, "x"), False)
    for site, prior in task.priors.items():
        assert sites[site][1].shape == prior.shape
        assert len(sites[site][0].event_shape) == len(prior.shape)
    assert sites["x"][1].shape == (task.num_data,)
    # Given data, x is observed.
    data = np.zeros(task.num_data, np.float32)
    assert run_program(backend, task, data)["x"][2]


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
@pytest.mark.parametrize("name", ["gaussian_linear", "gaussian_mixture", "bernoulli_glm", "sir"])
def test_the_program_has_the_prior_of_the_task(backend, name):
    """Log densities of theta, whose differences are those of the formulas."""
    task = SBI_TASKS[name]
    sites = run_program(backend, task)
    theta = task.draw_prior(np.random.default_rng(0), 2).astype(np.float32)
    for site, prior in task.priors.items():
        values, distribution = task.split(theta)[site], sites[site][0]
        if backend == "pyro":
            import torch

            values = torch.from_numpy(values)
        first, second = np.asarray(distribution.log_prob(values), float)
        p, (a, b) = prior.parameters, np.asarray(task.split(theta)[site], float)

        def formula(value, p=p, kind=prior.distribution):
            if kind == "Uniform":
                return 0.0
            if kind == "MultivariateNormal":
                return -0.5 * value @ p["precision_matrix"] @ value
            at = np.log(value) if kind == "LogNormal" else value
            normal = -0.5 * np.square((at - p["loc"]) / p["scale"]).sum()
            return normal - (np.log(value) if kind == "LogNormal" else 0.0)

        assert first - second == pytest.approx(formula(a) - formula(b), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    done = run_example("sbi_tasks", backend, tmp_path, "--smoke-test")
    (score,) = {len(summary(tmp_path)["two_moons"]["c2st"])}
    assert score == 3
    assert "two_moons" in done.stdout
