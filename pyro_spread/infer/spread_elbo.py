# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The ELBO of a model and data that were both passed through noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import infer, poutine
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions.transforms import ComposeTransform

from pyro_spread.handlers import SpreadMessenger, check_noise, is_delta
from pyro_spread.infer._guards import is_finite, no_new_params_on_error
from pyro_spread.infer._observation import observes
from pyro_spread.noise import SpreadNoise
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

# All particles of these enter one log-mean-exp: they must bound the same log p(y).
_SHARING = (infer.RenyiELBO, infer.TraceTailAdaptive_ELBO, infer.TraceTMC_ELBO)
_AVERAGING = (
    infer.Trace_ELBO,
    infer.TraceEnum_ELBO,
    infer.TraceGraph_ELBO,
    infer.TraceMeanField_ELBO,
)
_JIT = (
    infer.JitTrace_ELBO,
    infer.JitTraceEnum_ELBO,
    infer.JitTraceGraph_ELBO,
    infer.JitTraceMeanField_ELBO,
)
_REFUSED = {
    "Trace_MMD": "it compares latent samples with the prior and is no bound on log p(y).",
    "ReweightedWakeSleep": "its sleep phase draws data from the model instead of spreading them.",
}


class _LossSpread(SpreadMessenger):
    """The spread handler as a loss uses it: whatever would score the wrong thing is an error."""

    def __init__(self, noise: Mapping[str, SpreadNoise], handed: Mapping[str, torch.Tensor]):
        super().__init__(noise)
        self._handed = handed
        self._indices: dict[str, torch.Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        if isinstance(msg["fn"], _Subsample):
            self._indices[msg["name"]] = msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        site = msg["name"]
        if site not in self._observed:
            return
        if site not in self.noise:
            if msg["mask"] is not False and is_delta(msg["fn"], msg["value"]):
                raise ValueError(_messages.unspread_delta(site, self.noise))
        elif not self._observes_handed(msg):
            raise ValueError(_messages.observed_other_value(site))

    def _observes_handed(self, msg: Any) -> bool:
        value, handed = msg["value"], self._handed[msg["name"]]
        if value is handed:
            return True
        for frame in msg["cond_indep_stack"]:
            dim = frame.dim - msg["fn"].event_dim if frame.vectorized else 0
            indices = self._indices.get(frame.name)
            if indices is None or not -min(value.dim(), handed.dim()) <= dim < 0:
                continue
            if handed.shape[dim] == frame.full_size and value.shape[dim] == len(indices):
                handed = handed.index_select(dim, indices)
        width = msg["fn"].event_shape.numel()
        return observes(value, handed, self.noise[msg["name"]], width)

    def _check_complete(self) -> None:
        super()._check_complete()
        for site in self.noise:
            if site not in self._observed:
                raise ValueError(_messages.site_not_observed(site, self._observed))


def _parameters(kernel: SpreadNoise) -> torch.nn.Module:
    """A module of what is learnable in ``kernel``, the kernel and transform inside it included."""
    module = torch.nn.Module()
    for name, value in vars(kernel).items():
        if isinstance(value, (torch.nn.Parameter, torch.nn.Module)):
            setattr(module, name, value)
        elif isinstance(value, SpreadNoise):
            setattr(module, name, _parameters(value))
        elif isinstance(value, ComposeTransform):
            parts = (part for part in value.parts if isinstance(part, torch.nn.Module))
            setattr(module, name, torch.nn.ModuleList(parts))
    return module


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
    that the likelihood is scored at y. Importance-weighted bounds (Renyi, tail-adaptive, TMC) share
    one y among the particles of a step, since all of them must bound the same :math:`\log \tilde
    p(y)`. The model needs no change; at test time ``Predictive(model)`` gives clean samples.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import GaussianNoise, SpreadELBO
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     v = pyro.param("v", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         pyro.sample("z", dist.Normal(v * x, 0.3))
        >>> loss = SpreadELBO({"x": GaussianNoise(0.3)})
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> svi.step(torch.randn(100)) < float("inf")
        True

    A plate that subsamples full data inside the model has all of them noised at every step;
    mini-batches cost less. A kernel's ``nn.Parameter`` is trained through ``loss(model, guide)``
    only: under ``SVI`` make the scale a ``pyro.param`` in a callable ``noise``.

    With ``vectorize_particles=True`` an averaged bound still runs its particles one after another:
    each sees its own y, and a model written for x of shape (N, ...) cannot take (particles, N,
    ...).

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968

    :param noise: dict from observed site to noise kernel; or a callable that returns it, called
        with the model's (clean) arguments at every draw, in which ``pyro.param`` may be used. An
        annealed scale that is an argument of the model reaches the kernel that way.
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
        super().__init__(num_particles=elbo.num_particles)
        by_call = callable(noise) and not isinstance(noise, SpreadNoise)  # kernels are callable too
        self.noise: Noise = noise if by_call else check_noise(noise)
        self.elbo = elbo
        self.data = dict(data or {})
        if isinstance(self.noise, Mapping):
            check_data_sites(self.data, self.noise)
        # The stock ELBO runs as it is, but for where its traces come from.
        self._runner = copy.copy(elbo)
        self._runner._get_traces = self._get_traces
        self._particles = copy.copy(elbo)
        self._num_draws = 1
        if not isinstance(elbo, _SHARING):
            self._num_draws = elbo.num_particles
            if elbo.vectorize_particles and elbo.num_particles > 1:
                self._particles.max_plate_nesting -= 1  # it reserved a dim for the particles
            self._particles.num_particles, self._particles.vectorize_particles = 1, False

    def __call__(self, model: torch.nn.Module, guide: torch.nn.Module) -> ELBOModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide and the noise kernels.
        """
        module = super().__call__(model, guide)
        kernels = {} if callable(self.noise) else self.noise
        module.noise = torch.nn.ModuleList(_parameters(kernel) for kernel in kernels.values())
        return module

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI: here the guide itself. Code ports to NumPyro, where it does more.

        :param model: the model.
        :param guide: the guide.
        """
        return guide

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """
        The negative bound in nats, a Monte Carlo estimate with fresh noise.

        :raises ValueError: if site, argument, data and kernel do not fit together; the message
            names the site and the way out, and params and data are as before.
        """
        return self._run("loss", model, guide, args, kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Like :meth:`loss`, and adds the gradients of the surrogate loss to the params' grads."""
        return self._run("loss_and_grads", model, guide, args, kwargs)

    def differentiable_loss(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Like :meth:`loss`, as a tensor to differentiate."""
        if not hasattr(self.elbo, "differentiable_loss"):
            name = type(self.elbo).__name__
            reason = "it has no differentiable_loss. Use it through SVI, or another ELBO here."
            raise NotImplementedError(_messages.elbo_refused(name, reason))
        return self._run("differentiable_loss", model, guide, args, kwargs)

    def _run(self, method: str, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(poutine.unwrap(guide), poutine.messenger.Messenger):
            raise NotImplementedError(_messages.messenger_guide())
        with no_new_params_on_error():
            if isinstance(self.elbo, _JIT):
                # A compiled graph runs no checks: make them before it.
                located = self._locate(model, args, kwargs)
                _check_positional(located, type(self.elbo).__name__)
            return getattr(self._runner, method)(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        """Pairs of traces of the spread model and the guide, each on its own draw of y."""
        located = self._locate(model, args, kwargs)
        for _ in range(self._num_draws):
            noise = self._kernels(args, kwargs)
            values: dict[Key, torch.Tensor] = {}
            for site, key in located.items():
                if key not in values:
                    values[key] = _draw(noise[site], site, get_argument(key, args, kwargs))
            handed = {site: values[key] for site, key in located.items()}
            new_args, new_kwargs = replace_arguments(values, args, kwargs)
            spread_model = _LossSpread(noise, handed)(model)
            yield from self._particles._get_traces(spread_model, guide, new_args, new_kwargs)

    def _kernels(self, args: Any, kwargs: Any) -> dict[str, SpreadNoise]:
        # Those of a callable are made afresh for every particle, since each has its own backward.
        return (
            check_noise(self.noise(*args, **kwargs)) if callable(self.noise) else dict(self.noise)
        )

    def _locate(self, model: Any, args: Any, kwargs: Any) -> dict[str, Key]:
        """Where the data of every site are, after a check that they can be spread."""
        noise = self._kernels(args, kwargs)
        located = locate_data(model, noise, args, kwargs, self.data)
        for site, key in located.items():
            _check_data(
                site, noise[site], argument_name(key, model), get_argument(key, args, kwargs)
            )
        return located


def _check_elbo(elbo: Any) -> None:
    for name, why in _REFUSED.items():
        refused = getattr(infer, name, None)
        if refused is not None and isinstance(elbo, refused):
            raise NotImplementedError(_messages.elbo_refused(name, why))
    if not isinstance(elbo, ELBO):
        raise TypeError(_messages.no_elbo(elbo, "pyro.infer.ELBO"))
    if not isinstance(elbo, _AVERAGING + _SHARING):
        reason = "how its particles share noise is not known. Subclass one of the stock ELBOs."
        raise NotImplementedError(_messages.elbo_refused(type(elbo).__name__, reason))


def _check_positional(located: Mapping[str, Key], elbo: str) -> None:
    for site, key in located.items():
        if isinstance(key, str):
            raise ValueError(_messages.jit_keyword_data(site, key, elbo))


def _check_data(site: str, kernel: SpreadNoise, argument: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        got = f"of type {type(x).__name__}"
        raise ValueError(_messages.not_an_array(site, argument, got, "a torch.Tensor"))
    try:
        kernel.check_value(x)
    except (TypeError, ValueError) as error:
        raise type(error)(_messages.at_site(site, error)) from error
    if not is_finite(x):
        raise ValueError(_messages.nonfinite_data(site, argument))


def _draw(kernel: SpreadNoise, site: str, x: torch.Tensor) -> torch.Tensor:
    try:
        return kernel.draw(x)
    except (TypeError, ValueError) as error:
        raise type(error)(_messages.at_site(site, error)) from error
