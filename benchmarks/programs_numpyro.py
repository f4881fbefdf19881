# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The programs in NumPyro, as its examples have them, and NUTS on them.

Eight schools, centred or not, stand in NumPyro's documentation; ``baseball`` is the model with
logits of ``examples/baseball.py``, ``predator_prey`` that of ``examples/ode.py``. The regressions
are the tutorial `Bayesian hierarchical linear regression` for weights of rats: by index, as there,
and by nested plates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro import handlers
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from programs_data import PROGRAMS, Program, numbers

import numpyro_spread as spread

MEAN_DAY = 22.0
# Where the reference is not to be believed NUTS tries another parametrisation.
MAX_ERROR, MAX_R_HAT = 0.015, 1.01


def eight_schools(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", J):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentred(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", J):
        with handlers.reparam(config={"theta": TransformReparam()}):
            standard = dist.Normal(0.0, 1.0)
            moved = dist.TransformedDistribution(standard, dist.transforms.AffineTransform(mu, tau))
            theta = numpyro.sample("theta", moved)
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def baseball(at_bats, hits=None):
    loc = numpyro.sample("loc", dist.Normal(-1, 1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1))
    with numpyro.plate("num_players", at_bats.shape[0]):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        numpyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


def _coefficients():
    mu_alpha = numpyro.sample("mu_alpha", dist.Normal(250.0, 100.0))
    sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(50.0))
    mu_beta = numpyro.sample("mu_beta", dist.Normal(0.0, 10.0))
    sigma_beta = numpyro.sample("sigma_beta", dist.HalfNormal(3.0))
    return dist.Normal(mu_alpha, sigma_alpha), dist.Normal(mu_beta, sigma_beta)


def regression(num_rats, days, weights=None):
    of_alpha, of_beta = _coefficients()
    sigma = numpyro.sample("sigma", dist.HalfNormal(20.0))
    with numpyro.plate("rat", num_rats, dim=-1):
        alpha = numpyro.sample("alpha", of_alpha)
        beta = numpyro.sample("beta", of_beta)
        with numpyro.plate("day", len(days), dim=-2):
            mean = alpha + beta * (jnp.asarray(days)[:, None] - MEAN_DAY)
            numpyro.sample("obs", dist.Normal(mean, sigma), obs=weights)


def regression_indexed(rat, days, weights=None):
    of_alpha, of_beta = _coefficients()
    with numpyro.plate("plate_i", len(np.unique(rat))):
        alpha = numpyro.sample("alpha", of_alpha)
        beta = numpyro.sample("beta", of_beta)
    sigma = numpyro.sample("sigma", dist.HalfNormal(20.0))
    mean = alpha[rat] + beta[rat] * (days - MEAN_DAY)
    with numpyro.plate("data", len(rat)):
        numpyro.sample("obs", dist.Normal(mean, sigma), obs=weights)


def _predators_and_prey(z, t, theta):
    u, v = z
    alpha, beta, gamma, delta = theta
    return jnp.stack([(alpha - beta * v) * u, (-gamma + delta * u) * v])


def predator_prey(N, y=None):
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10), 1).expand([2]))
    ts = jnp.arange(float(N))
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.2, 0.01, 0.2, 0.01])
    theta = numpyro.sample("theta", dist.TruncatedNormal(low=0.0, loc=loc, scale=scale))
    z = odeint(_predators_and_prey, z_init, ts, theta, rtol=1e-6, atol=1e-5, mxstep=1000)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]))
    numpyro.sample("y", dist.LogNormal(jnp.log(z), sigma), obs=y)


def model_of(program: Program) -> Any:
    return globals()[program.model]


def data_sets(program: Program, num: int, seed: int) -> list[np.ndarray]:
    """
    The real data and simulated ones, finite.

    :param program: whose.
    :param num: how many are simulated.
    :param seed: of the simulations.
    """
    # As many as ever, so that the first ones are the same whatever their number is.
    table = spread.simulate(
        model_of(program), max(num, 50), *program.args, observed=program.observed, seed=seed,
        progress_bar=False,
    )  # fmt: skip
    return [program.data, *table[program.observed][table.valid][:num]]


class Reference:
    """
    NUTS on a program: four chains, compiled once for all data sets.

    :param program: the program.
    :param num_samples: draws of each chain, after a quarter as many steps of adaptation, at least
        1,000 where there are so many draws.
    """

    def __init__(self, program: Program, num_samples: int) -> None:
        self.program = program
        self.source = PROGRAMS[program.source] if program.source else program
        self.num_samples = num_samples
        model = model_of(self.source)
        self.forms = {"as it is": self._chains(model)}
        if self.source.sites:
            config = {site: LocScaleReparam(0.0) for site in self.source.sites}
            self.forms["non-centred"] = self._chains(handlers.reparam(model, config=config))

    def __call__(self, data: np.ndarray, seed: int) -> dict[str, Any]:
        """
        Moments of every number, and how far they are to be believed: the better form's.

        :param data: what was observed.
        :param seed: of the chains.
        """
        cpu, best = time.process_time(), None
        keys = jax.random.split(jax.random.key(seed), 4)
        for name, chains in self.forms.items():
            found = self._summary(*jax.device_get(chains(keys, data))) | {"form": name}
            if best is None or found["error"] < best["error"]:
                best = found
            if best["error"] < MAX_ERROR and best["r_hat"] < MAX_R_HAT:
                break
        assert best is not None
        return best | {"cpu": time.process_time() - cpu}

    def _chains(self, model: Any) -> Any:
        num, warm_up = self.num_samples, max(min(1000, self.num_samples), self.num_samples // 4)

        def one(key: jax.Array, data: jax.Array) -> tuple[Any, jax.Array]:
            kernel = NUTS(
                model, dense_mass=self.program.dense, target_accept_prob=0.9, max_tree_depth=8
            )
            chain = MCMC(kernel, num_warmup=warm_up, num_samples=num, progress_bar=False)
            chain.run(key, *self.source.args, data, extra_fields=("diverging",))
            return chain.get_samples(), chain.get_extra_fields()["diverging"].sum()

        return jax.jit(jax.vmap(one, in_axes=(0, None)))

    def _summary(self, draws: Mapping[str, Any], divergences: Any) -> dict[str, Any]:
        own = {
            name: values.reshape(-1, *values.shape[2:])
            for name, values in draws.items()
            if not name.endswith("_decentered")  # added by the reparametrisation
        }
        columns = numbers(self.program, self.program.back(own))
        stats = summary({k: v.reshape(4, -1) for k, v in columns.items()}, group_by_chain=True)
        errors = {k: float(1 / np.sqrt(s["n_eff"])) for k, s in stats.items()}
        return {
            "moments": {k: [float(s["mean"]), float(s["std"])] for k, s in stats.items()},
            "errors": errors,
            "error": max(errors.values()),
            "r_hat": max(float(s["r_hat"]) for s in stats.values()),
            "divergences": int(np.sum(divergences)),
        }


def amortize(program: Program, num_simulations: int, seed: int) -> Any:
    """The default of ``numpyro_spread``."""
    return spread.amortize(
        model_of(program), *program.args, observed=program.observed,
        num_simulations=num_simulations, seed=seed, progress_bar=False,
    )  # fmt: skip


def as_data(data: np.ndarray) -> Any:
    return jnp.asarray(data)
