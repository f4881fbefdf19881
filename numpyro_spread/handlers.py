# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The effect handler ``spread``, which adds noise to the distributions at observed sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from numpyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    MixtureGeneral,
    MixtureSameFamily,
)
from numpyro.primitives import Messenger

from numpyro_spread.noise import SpreadNoise
from spread_core.messages import general, spreading
from spread_core.messages import noise as noise_messages
from spread_core.patterns import key_of, resolved

_MARK = "_spread"
_FIRST_STEPS = "_PREV_"


def check_noise(noise: Any) -> dict[str, SpreadNoise]:
    """
    A copy of ``noise`` if it is a dict from site names to kernels.

    :raises TypeError: if it is not.
    """
    if not isinstance(noise, Mapping) or not noise:
        raise TypeError(spreading.bad_noise_argument(noise))
    for site, kernel in noise.items():
        if not isinstance(site, str):
            raise TypeError(spreading.bad_noise_argument(noise))
        if not isinstance(kernel, SpreadNoise):
            raise TypeError(general.at_site(site, noise_messages.not_a_kernel(kernel)))
    return dict(noise)


def is_delta(fn: Distribution) -> bool:
    """Whether ``fn`` is a ``Delta`` or a mixture of them, also inside wrappers."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        if getattr(fn, "_mask", None) is False:
            return False
        fn = fn.base_dist
    if isinstance(fn, MixtureSameFamily):
        return is_delta(fn.component_distribution)
    if isinstance(fn, MixtureGeneral):
        return any(is_delta(part) for part in fn.component_distributions)
    return isinstance(fn, Delta)


def site_of(msg: Any) -> str:
    """The name of a site; NumPyro marks the first steps of a scan that it enumerates."""
    name: str = msg["name"]
    while name.startswith(_FIRST_STEPS):
        name = name.removeprefix(_FIRST_STEPS)
    return name


class spread(Messenger):  # noqa: N801
    r"""
    Effect handler that passes the distribution at observed sites through a noise kernel.

    At every observed site that ``noise`` names, the distribution p becomes
    :math:`\int k(y \mid x)\, p(x)\, dx`, exactly. Values are untouched: the caller passes noisy
    values to the model. Sites that are not observed are untouched too: ``Predictive`` gives clean
    draws.

    Both spellings work, ``spread(model, noise)`` and ``with spread(noise=noise):``.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.util import log_density
        >>> from numpyro_spread import GaussianNoise, spread
        >>> def model(y):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("x", dist.Delta(2 * z), obs=y)
        >>> spread_model = spread(model, {"x": GaussianNoise(0.3)})
        >>> density, _ = log_density(spread_model, (jnp.array(1.0),), {}, {"z": jnp.array(0.5)})
        >>> bool(jnp.isfinite(density))
        True

    :param fn: a model.
    :param noise: dict from the names of observed sites to noise kernels; a name may be a pattern as
        for files, such as ``"x_*"``, that stands for all observed sites it fits.
    :return: the model with its observed sites spread; without ``fn``, a context manager and
        decorator.
    :raises TypeError: if noise is not such a dict, or a value's type does not fit its kernel.
    :raises ValueError: if a named site does not exist, a kernel does not fit it, or it was made
        observed by a handler outside this one.
    :raises NotImplementedError: if the spread of a site's distribution is not known exactly.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        noise: Mapping[str, SpreadNoise] | None = None,
    ) -> None:
        self.noise = check_noise(noise)
        self._keys: dict[str, str | None] = {}
        self._seen: set[str] = set()
        self._observed: set[str] = set()
        super().__init__(fn)

    def __enter__(self) -> Any:
        self._seen, self._observed = set(), set()
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            self._check_complete()

    def _check_complete(self) -> None:
        for key in resolved(self.noise, self._seen, self._observed):
            if key not in self._seen:
                raise ValueError(spreading.no_such_site(key, self._observed))

    def _kernel_at(self, site: str) -> SpreadNoise | None:
        """The kernel of a site, under its own name or a pattern."""
        if site not in self._keys:
            self._keys[site] = key_of(self.noise, site)
        key = self._keys[site]
        return None if key is None else self.noise[key]

    def process_message(self, msg: Any) -> None:
        """Spread the distribution of an observed site, after all handlers inside this one."""
        if msg["type"] != "sample":
            return
        site = site_of(msg)
        self._seen.add(site)
        if not msg["is_observed"]:
            return
        self._observed.add(site)
        kernel = self._kernel_at(site)
        if kernel is not None:
            self._spread(msg, kernel)

    def _spread(self, msg: Any, kernel: SpreadNoise) -> None:
        site = site_of(msg)
        if msg["infer"].get(_MARK):
            raise ValueError(spreading.already_spread(site))
        try:
            kernel.check_value(msg["value"])
            msg["fn"] = kernel.spread(msg["fn"])
            event, value = msg["fn"].event_shape, jnp.shape(msg["value"])
            if value[len(value) - len(event) :] != event:
                raise ValueError(spreading.value_misfit(value, event))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(general.at_site(site, error)) from error
        # A copy: the dict belongs to the model, which may use it for several sites.
        msg["infer"] = {**msg["infer"], _MARK: True}

    def postprocess_message(self, msg: Any) -> None:
        """Notice sites that a handler outside this one made observed."""
        if msg["type"] != "sample" or not msg["is_observed"]:
            return
        site = site_of(msg)
        if site not in self._observed and self._kernel_at(site) is not None:
            raise ValueError(spreading.conditioned_outside(site))
