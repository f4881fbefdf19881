# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The methods that ``sbi_run.py`` compares, each with its defaults and nothing chosen per task.

A method is a function that imports its library and returns a trainer; a trainer takes task, theta,
x and seed, and returns a function that draws theta given one x. Only the trainer is timed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from studies.sbi_tasks import Prior, SbiTask

Draw = Callable[[Any, int], Any]  # from x of shape (num_data,) and a number to (number, dim)
ROUNDS = 10
Train = Callable[[SbiTask, Any, Any, int], Draw]


def _example(backend: str) -> Any:
    """The backend's example, which has the tasks as programs."""
    name = f"{backend}_sbi_tasks"
    path = Path(__file__).parents[1] / "examples" / backend / "sbi_tasks.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[name] = example
    spec.loader.exec_module(example)
    if backend == "pyro":
        _one_thread_of_torch()
    return example


def _amortize(backend: str) -> Train:
    """The default of the backend."""
    example = _example(backend)

    def train(task: SbiTask, theta: Any, x: Any, seed: int) -> Draw:
        draw = example.fit(task, task.split(theta), x, seed)
        return lambda x, num: task.join(draw(np.asarray(x, np.float32), num))

    return train


def _in_rounds(backend: str) -> Train:
    """As many simulations for each observation by itself; it trains when it is asked for draws."""
    example = _example(backend)

    def train(task: SbiTask, theta: Any, x: Any, seed: int) -> Draw:
        def draw(observed: Any, num: int) -> Any:
            at = np.asarray(observed, np.float32)
            posterior = example.amortize(
                example.program(task), observed="x", num_simulations=len(theta), rounds=ROUNDS,
                x_observed=at, seed=seed, progress_bar=False,
            )  # fmt: skip
            return task.join(posterior.sample(at, num_samples=num))

        return draw

    return train


def numpyro() -> Train:
    """``numpyro_spread.amortize``."""
    return _amortize("numpyro")


def numpyro_rounds() -> Train:
    """``numpyro_spread.amortize`` with ``rounds``."""
    return _in_rounds("numpyro")


def pyro_rounds() -> Train:
    """``pyro_spread.amortize`` with ``rounds``."""
    return _in_rounds("pyro")


def pyro() -> Train:
    """``pyro_spread.amortize``."""
    return _amortize("pyro")


def sbi_npe(density_estimator: str = "maf") -> Train:
    """``NPE`` of the library ``sbi``, with its default density."""
    import torch
    from sbi.inference import NPE

    _one_thread_of_torch()

    def train(task: SbiTask, theta: Any, x: Any, seed: int) -> Draw:
        torch.manual_seed(seed)
        with _elsewhere():
            inference = NPE(
                torch_prior(task), density_estimator=density_estimator, show_progress_bars=False
            )
            inference.append_simulations(torch.from_numpy(theta), torch.from_numpy(x))
            inference.train()
            posterior = inference.build_posterior()

        def draw(x: Any, num: int) -> Any:
            given = torch.from_numpy(np.asarray(x, np.float32))
            return posterior.sample((num,), x=given, show_progress_bars=False).numpy()

        return draw

    return train


def sbi_nsf() -> Train:
    """``NPE`` of the library ``sbi`` with a neural spline flow."""
    return sbi_npe("nsf")


def bayesflow() -> Train:
    """``BasicWorkflow`` of BayesFlow 2: a coupling flow; x standardised, the prior bounded."""
    if importlib.util.find_spec("jax") is None:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import bayesflow as bf
    import keras

    if keras.backend.backend() == "torch":
        _one_thread_of_torch()

    def train(task: SbiTask, theta: Any, x: Any, seed: int) -> Draw:
        keras.utils.set_random_seed(seed)
        adapter = bf.Adapter().convert_dtype("float64", "float32")
        for name, prior in task.priors.items():
            low, high = prior.interval
            if np.isfinite(low).all():
                upper = {"upper": np.atleast_1d(high)} if np.isfinite(high).all() else {}
                adapter = adapter.constrain(name, lower=np.atleast_1d(low), **upper)
        adapter = adapter.concatenate(list(task.priors), into="inference_variables")
        adapter = adapter.rename("x", "inference_conditions")
        workflow = bf.BasicWorkflow(adapter=adapter, standardize="all")
        sites = {name: value.reshape(len(x), -1) for name, value in task.split(theta).items()}
        with _elsewhere():
            workflow.fit_offline({**sites, "x": x}, verbose=0)

        def draw(x: Any, num: int) -> Any:
            given = {"x": np.asarray(x, np.float32)[None]}
            values = workflow.sample(conditions=given, num_samples=num)
            return np.concatenate([values[name][0] for name in task.priors], -1)

        return draw

    return train


def prior() -> Train:
    """A control that learns nothing: draws from the prior."""

    def train(task: SbiTask, theta: Any, x: Any, seed: int) -> Draw:
        rng = np.random.default_rng([seed, 1])
        return lambda x, num: task.draw_prior(rng, num)

    return train


def exact() -> Train:
    """A control that needs to learn nothing: the posterior in closed form, where it has one."""

    def train(task: SbiTask, theta: Any, x: Any, seed: int) -> Draw:
        if task.draw_posterior is None:
            raise ValueError(f"the posterior of {task.name} has no closed form")
        rng, draw = np.random.default_rng([seed, 2]), task.draw_posterior
        return lambda x, num: draw(rng, x, num)

    return train


def torch_prior(task: SbiTask) -> Any:
    """The prior over theta's columns, for ``sbi``."""
    import torch
    from sbi.utils import BoxUniform

    def tensors(priors: list[Prior], name: str) -> torch.Tensor:
        values = [np.atleast_1d(prior.parameters[name]) for prior in priors]
        return torch.from_numpy(np.concatenate(values)).float()

    priors = list(task.priors.values())
    (kind,) = {prior.distribution for prior in priors}
    if kind == "Uniform":
        return BoxUniform(tensors(priors, "low"), tensors(priors, "high"))
    if kind == "MultivariateNormal":
        precision = torch.from_numpy(priors[0].parameters["precision_matrix"]).float()
        return torch.distributions.MultivariateNormal(
            tensors(priors, "loc"), precision_matrix=precision
        )
    distribution = getattr(torch.distributions, kind)
    independent = distribution(tensors(priors, "loc"), tensors(priors, "scale"))
    return torch.distributions.Independent(independent, 1)


#: By the name on the command line.
METHODS: dict[str, Callable[[], Train]] = {
    "numpyro": numpyro,
    "pyro": pyro,
    "numpyro-rounds": numpyro_rounds,
    "pyro-rounds": pyro_rounds,
    "sbi-npe": sbi_npe,
    "sbi-nsf": sbi_nsf,
    "bayesflow": bayesflow,
    "prior": prior,
    "exact": exact,
}
#: What a method imports.
LIBRARIES = {
    "numpyro": "numpyro",
    "pyro": "pyro",
    "numpyro-rounds": "numpyro",
    "pyro-rounds": "pyro",
    "sbi-npe": "sbi",
    "sbi-nsf": "sbi",
    "bayesflow": "bayesflow",
}


def _one_thread_of_torch() -> None:
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """In a folder of its own, since sbi writes logs to where it stands, and without its prints."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield
