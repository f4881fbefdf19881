# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The effect handler ``spread``, which adds noise to the distributions at observed sites."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger

from pyro_spread.noise import SpreadNoise
from spread_core.messages import general, spreading
from spread_core.messages import noise as noise_messages
from spread_core.patterns import key_of, resolved


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


def is_delta(fn: Any, value: Any = None) -> bool:
    """
    Whether ``fn`` is a ``Delta`` or a mixture of them, also inside wrappers, that scores ``value``.

    Pyro's reparametrisers leave Deltas that are masked out or stand at their own value.
    """
    wrappers = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)
    while isinstance(fn, wrappers):
        if getattr(fn, "_mask", None) is False:
            return False
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        return is_delta(fn.component_distribution)
    return isinstance(fn, Delta) and fn.v is not value


def is_data(msg: Any) -> bool:
    """Whether a message is an observation; ``pyro.deterministic`` sites only look like one."""
    return msg["is_observed"] and not msg["infer"].get("_deterministic", False)


class SpreadMessenger(Messenger):
    """
    Replace the distribution at observed sites by its spread; see :func:`spread`.

    :param noise: dict from site to kernel.
    """

    def __init__(self, noise: Mapping[str, SpreadNoise]) -> None:
        super().__init__()
        self.noise = check_noise(noise)
        self._keys: dict[str, str | None] = {}
        self._seen: set[str] = set()
        self._observed: set[str] = set()

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

    def _pyro_sample(self, msg: Any) -> None:
        site = msg["name"]
        self._seen.add(site)
        if not is_data(msg):
            return
        self._observed.add(site)
        kernel = self._kernel_at(site)
        if kernel is not None:
            self._spread(msg, kernel)

    def _spread(self, msg: Any, kernel: SpreadNoise) -> None:
        if msg["infer"].get("_spread"):
            raise ValueError(spreading.already_spread(msg["name"]))
        try:
            observed = torch.as_tensor(msg["value"])
            kernel.check_value(observed)
            msg["fn"] = kernel.spread(msg["fn"])
            event, value = msg["fn"].event_shape, observed.shape
            if value[len(value) - len(event) :] != event:
                raise ValueError(spreading.value_misfit(value, event))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(general.at_site(msg["name"], error)) from error
        msg["infer"]["_spread"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._observed or not is_data(msg):
            return
        if self._kernel_at(msg["name"]) is not None:
            raise ValueError(spreading.conditioned_outside(msg["name"]))


def spread(
    fn: Callable[..., Any] | None = None, noise: Mapping[str, SpreadNoise] | None = None
) -> Any:
    r"""
    Effect handler that passes the distribution at observed sites through a noise kernel.

    At every observed site that ``noise`` names, the distribution p becomes
    :math:`\int k(y \mid x)\, p(x)\, dx`, exactly. Values are untouched: the caller passes noisy
    values to the model. Sites that are not observed are untouched too, so ``Predictive`` gives
    clean draws.

    Both spellings work, ``spread(model, noise)`` and ``with spread(noise=noise):``.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_spread import GaussianNoise, spread
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Delta(2 * z), obs=y)
        >>> spread_model = spread(model, {"x": GaussianNoise(0.3)})
        >>> trace = pyro.poutine.trace(spread_model).get_trace(torch.tensor(1.0))
        >>> bool(torch.isfinite(trace.log_prob_sum()))
        True

    :param fn: a model.
    :param noise: dict from the names of observed sites to noise kernels; a name may be a pattern as
        for files, such as ``"x_*"``, that stands for all observed sites it fits.
    :return: the model with its observed sites spread; without ``fn``, a context manager.
    :raises TypeError: if noise is not such a dict, or a value's type does not fit its kernel.
    :raises ValueError: if a named site does not exist, a kernel does not fit it, or it was made
        observed by a handler outside this one.
    :raises NotImplementedError: if the spread of a site's distribution is not known exactly.
    """
    if fn is not None and not callable(fn):
        raise TypeError(f"{fn} is not callable, did you mean to pass it as a keyword arg?")
    messenger = SpreadMessenger(noise)  # type: ignore[arg-type]
    if fn is None:
        return messenger
    return functools.update_wrapper(messenger(fn), fn, updated=())
