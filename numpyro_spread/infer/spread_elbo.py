# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The ELBO of a model and data that were both passed through noise."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import infer
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.elbo import ELBO

from numpyro_spread.handlers import check_noise, is_delta, spread
from numpyro_spread.infer._observation import sites_of_other_values
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.noise.base import is_concrete
from spread_analysis import _messages
from spread_analysis._arguments import (
    Key,
    argument_name,
    check_data_sites,
    get_argument,
    locate_data,
    replace_arguments,
)

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]

_AVERAGING = (
    infer.Trace_ELBO,
    infer.TraceMeanField_ELBO,
    infer.TraceGraph_ELBO,
    infer.TraceEnum_ELBO,
)
# All particles of these enter one log-mean-exp: they must bound the same log p(y).
_SHARING = (infer.RenyiELBO,)


class _LossSpread(spread):
    """The spread handler as a loss uses it: whatever would score the wrong thing is an error."""

    def __init__(
        self,
        fn: Callable[..., Any],
        noise: Mapping[str, SpreadNoise],
        handed: Mapping[str, jax.Array],
        suspects: set[str],
    ) -> None:
        super().__init__(fn, noise)
        self._handed = handed
        self._suspects = suspects

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if msg["type"] != "sample" or not msg["is_observed"]:
            return
        site = msg["name"]
        if site not in self.noise:
            if is_delta(msg["fn"]):
                raise ValueError(_messages.unspread_delta(site, self.noise))
        elif not _is_same(msg["value"], self._handed[site]):
            # Decided later, outside of the transformations that the stock ELBO runs the model in.
            self._suspects.add(site)

    def _check_complete(self) -> None:
        super()._check_complete()
        for site in self.noise:
            if site not in self._observed:
                raise ValueError(_messages.site_not_observed(site, self._observed))


class _Registered:
    """A guide that checks its arguments first; all else, such as ``median``, is the guide's own."""

    def __init__(self, guide: Callable[..., Any], check: Callable[..., None]) -> None:
        functools.update_wrapper(self, guide, updated=())
        self._guide, self._check = guide, check

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check(args, kwargs)
        return self._guide(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_guide":  # pickle asks before there is a guide
            raise AttributeError(name)
        return getattr(self._guide, name)


class SpreadELBO(ELBO):
    r"""
    Evidence lower bound of the spread model, for models whose likelihood is zero almost everywhere.

    Data and model pass through the same noise kernel :math:`k(y \mid x)`, and the stock ``elbo`` is
    evaluated on the result [1, section 4]. With :math:`p(x \mid z) = \delta(x - g(z))`,

    .. math::
        \mathbb{E}_{p(x)\, k(y|x)}\Big[ \mathbb{E}_{q(z|y)} \log k(y \mid g(z))
        - \mathrm{KL}[q(z \mid y) \,\|\, p(z)] \Big]
        \le \mathbb{E}\, \log \tilde p(y),

    in nats, and maximising it minimises :math:`\mathrm{KL}[\tilde p_{data} \| \tilde p_{model}]`,
    which is zero only where the clean distributions agree. At every step and for every particle
    :math:`y \sim k(y \mid x)` is drawn afresh and handed to model and guide **instead of** x, so
    that the likelihood is scored at y. Importance-weighted bounds (``RenyiELBO``; ``Trace_ELBO``
    with ``multi_sample_guide``) share one y among the particles of a step, since all of them must
    bound the same :math:`\log \tilde p(y)`. The model needs no change; at test time
    ``Predictive(model)`` gives clean samples.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import GaussianNoise, SpreadELBO
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     v = numpyro.param("v", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         numpyro.sample("z", dist.Normal(v * x, 0.3))
        >>> loss = SpreadELBO({"x": GaussianNoise(0.3)})
        >>> svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(1e-2), loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    Values can be checked only where they are concrete: in eager calls, in ``svi.run`` (which
    captures the data) and, if the guide went through :meth:`register`, in ``SVI.init``. Structure,
    shapes and types are checked under jit too, when it traces, at no cost when it runs. A plate
    that subsamples full data inside the model has all of them noised at every step; mini-batches
    cost less.

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968

    :param noise: dict from observed site to noise kernel; or a callable that returns it, called
        with the model's (clean) arguments at every step, in which ``numpyro.param`` may be used if
        the guide goes through :meth:`register`. An annealed scale that is an argument of the model
        reaches the kernel that way, also under jit.
    :param elbo: the stock ELBO to evaluate; ``Trace_ELBO()`` by default.
    :param data: dict from site to the name of the model argument that carries its data. Left out:
        the argument of the site's name, else the first.
    :raises TypeError: if noise is not such a dict or elbo not an ELBO.
    :raises NotImplementedError: if elbo is one that cannot be spread, saying why.
    """

    def __init__(
        self, noise: Noise, elbo: ELBO | None = None, data: Mapping[str, str] | None = None
    ) -> None:
        elbo = infer.Trace_ELBO() if elbo is None else elbo
        _check_elbo(elbo)
        super().__init__(elbo.num_particles, elbo.vectorize_particles)
        by_call = callable(noise) and not isinstance(noise, SpreadNoise)  # kernels are callable too
        self.noise: Noise = noise if by_call else check_noise(noise)
        self.elbo = elbo
        self.data = dict(data or {})
        if isinstance(self.noise, Mapping):
            check_data_sites(self.data, self.noise)
        # Averaged bounds are run particle by particle, each on a y of its own.
        self._particle = copy.copy(elbo)
        self._particle.num_particles = 1

    @property
    def can_infer_discrete(self) -> bool:
        """Whether the stock ELBO takes discrete latent variables; ``SVI.init`` asks."""
        return self.elbo.can_infer_discrete

    @property
    def multi_sample_guide(self) -> bool:
        """Whether the guide proposes several samples at once; ``SVI.init`` asks."""
        return getattr(self.elbo, "multi_sample_guide", False)

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI. With it, wrong data are an error in ``SVI.init`` already, and
        params of a callable ``noise`` are trained.

        :param model: the model.
        :param guide: the guide.
        :return: a guide of the same signature.
        """

        def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Predictive runs guides without data: then there is nothing to check.
            if all(argument is None for argument in (*args, *kwargs.values())):
                return
            noise = check_noise(self.noise(*args, **kwargs)) if callable(self.noise) else self.noise
            self._locate(model, noise, args, kwargs)

        return _Registered(guide, check)

    def loss(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The negative bound in nats, a Monte Carlo estimate with fresh noise.

        :param rng_key: random key; the same key gives the same noise.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: the guide, which is called on y.
        :raises ValueError: if site, argument, data and kernel do not fit together; the message
            names the site and the way out.
        """
        return self._run("loss", rng_key, param_map, model, guide, args, kwargs)

    def loss_with_mutable_state(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        if self.num_particles > 1:
            raise NotImplementedError(_messages.mutable_particles(self.num_particles))
        method = "loss_with_mutable_state"
        return self._run(method, rng_key, param_map, model, guide, args, kwargs)

    def _run(
        self,
        method: str,
        rng_key: jax.Array,
        params: Any,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        noise = self._kernels(params, args, kwargs)
        located = self._locate(model, noise, args, kwargs)
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        suspects: set[str] = set()

        def on_fresh_noise(elbo: ELBO, rng_key: jax.Array) -> Any:
            noise_key, elbo_key = random.split(rng_key)
            handed = _draw(noise, located, noise_key, args, kwargs)
            shapes.update({s: jax.ShapeDtypeStruct(y.shape, y.dtype) for s, y in handed.items()})
            values = {key: handed[site] for site, key in located.items()}
            new_args, new_kwargs = replace_arguments(values, args, kwargs)
            spread_model = _LossSpread(model, noise, handed, suspects)
            run = getattr(elbo, method)
            return run(elbo_key, params, spread_model, guide, *new_args, **new_kwargs)

        if self.num_particles == 1 or isinstance(self.elbo, _SHARING) or self.multi_sample_guide:
            result = on_fresh_noise(self.elbo, rng_key)
        else:
            rng_keys = random.split(rng_key, self.num_particles)
            one = functools.partial(on_fresh_noise, self._particle)
            losses = self.elbo.vectorize_particles_fn(one, rng_keys)
            # A tree: with sum_sites=False the loss is a dict of sites.
            result = jax.tree.map(lambda loss: jnp.mean(loss, axis=0), losses)
        if suspects:
            free = {site for site in suspects if noise[site]._moves_with_data()}
            others = sites_of_other_values(
                model, shapes, located, suspects, free, params, args, kwargs
            )
            if others:
                raise ValueError(_messages.observed_other_value(others[0]))
        return result

    def _kernels(
        self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, SpreadNoise]:
        if not callable(self.noise):
            return dict(self.noise)
        with trace() as sites, seed(rng_seed=0), substitute(data=params):
            noise = check_noise(self.noise(*args, **kwargs))
        unknown = [n for n, s in sites.items() if s["type"] == "param" and n not in params]
        if unknown:
            raise ValueError(_messages.unregistered_params(unknown))
        return noise

    def _locate(
        self,
        model: Callable[..., Any],
        noise: Mapping[str, SpreadNoise],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Key]:
        """Where the data of every site are, after a check that they can be spread."""
        located = locate_data(model, noise, args, kwargs, self.data)
        for site, key in located.items():
            _check_data(
                site, noise[site], argument_name(key, model), get_argument(key, args, kwargs)
            )
        return located


def _check_elbo(elbo: Any) -> None:
    if not isinstance(elbo, ELBO):
        raise TypeError(_messages.no_elbo(elbo, "numpyro.infer.elbo.ELBO"))
    if not isinstance(elbo, _AVERAGING + _SHARING):
        reason = "how its particles share noise is not known. Subclass one of the stock ELBOs."
        raise NotImplementedError(_messages.elbo_refused(type(elbo).__name__, reason))


def _is_same(value: Any, handed: jax.Array) -> bool:
    if value is handed:
        return True
    if not is_concrete(value, handed):
        return False
    return np.array_equal(np.asarray(value), np.asarray(handed))


def _check_data(site: str, kernel: SpreadNoise, argument: str, x: Any) -> None:
    if not isinstance(x, jax.Array | np.ndarray | np.number | float | int):
        got = f"of type {type(x).__name__}"
        raise ValueError(_messages.not_an_array(site, argument, got, "an array"))
    try:
        kernel.check_value(x)
    except (TypeError, ValueError) as error:
        raise type(error)(_messages.at_site(site, error)) from error
    # NumPy sees through jit where the data are captured, as svi.run captures them.
    if is_concrete(x) and not np.all(np.isfinite(np.asarray(x))):
        raise ValueError(_messages.nonfinite_data(site, argument))


def _draw(
    noise: Mapping[str, SpreadNoise],
    located: Mapping[str, Key],
    rng_key: jax.Array,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, jax.Array]:
    values: dict[Key, jax.Array] = {}
    for (site, key), site_key in zip(
        located.items(), random.split(rng_key, len(located)), strict=True
    ):
        if key in values:
            continue
        try:
            values[key] = noise[site].draw(site_key, get_argument(key, args, kwargs))
        except (TypeError, ValueError) as error:
            raise type(error)(_messages.at_site(site, error)) from error
    return {site: values[key] for site, key in located.items()}
