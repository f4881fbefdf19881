# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Monitoring a training run: numbers for a progress bar, and an HTML page."""

from __future__ import annotations

import math
import os
import warnings as python_warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpy.typing import ArrayLike
from numpyro.distributions import Unit
from numpyro.handlers import seed as seeded
from numpyro.handlers import trace
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIRunResult, SVIState

from numpyro_spread.guard import FiniteGuard, loss_of
from numpyro_spread.infer._datum import datum_rows, frames_of, parts_left_out
from numpyro_spread.infer._joint_sides import _data_plates, _plates_of, is_latent, run, run_forward
from numpyro_spread.infer._registration import Loss
from numpyro_spread.infer._two_sides import is_compared, mask_at, no_guide
from spread_analysis.history import History
from spread_analysis.log_evidence import any_of_datum
from spread_analysis.report import CriticLogits, Report, describe, write_report
from spread_analysis.report.gather import (
    Draws,
    Options,
    assemble,
    count_data,
    pool_latents,
    rows_of,
)
from spread_analysis.report.words import figures_of, shorten
from spread_core.messages import players
from spread_core.messages import report as report_messages

__all__ = ["diagnose", "report"]

# Folded into the key of a state, so that it differs from the keys that SVI makes.
_LOOK = 0x5EED0006


def diagnose(svi: SVI, svi_state: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    """
    The numbers to watch during training: for progress bars, TensorBoard and so on.

    Nothing is moved by it: neither state nor random key, so that a run with it ends as the same run
    without. It is not compiled and costs as much as some steps: call it every hundred steps or so.

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> import flax.linen as nn
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import AdversarialDivergence, History, concat_sites, diagnose
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> loss = AdversarialDivergence(concat_sites(nn.Dense(1), "x"))
        >>> svi = SVI(model, loss.register(model, lambda x: None), optax.adam(1e-2), loss)
        >>> x = jax.random.normal(jax.random.key(1), (100,))
        >>> update, state = jax.jit(svi.update), svi.init(jax.random.key(0), x)
        >>> history = History()
        >>> for step in range(1, 21):
        ...     state, _ = update(state, x)
        ...     if step % 10 == 0:
        ...         history.add(step, diagnose(svi, state, x))
        >>> list(history.postfix())
        ['divergence', 'critic_accuracy']

    :param svi: an SVI.
    :param svi_state: its state; or what ``svi.run`` returned, or params by name (then the same
        draws are made at every call).
    :param args: positional arguments of model and guide, the data among them; held-out ones tell
        more.
    :param kwargs: keyword arguments of both.
    :return: ``loss``; ``divergence``, the same number, where the loss is an estimate of one; and
        for each critic that is a classifier ``critic_accuracy``, ``critic_divergence`` (its
        estimate of JS_pi, in nats), ``critic_saturated`` and ``log_ratio_gap`` (nats), with "/site"
        behind where there is one critic per site. What a contrast ELBO reports is an estimate and
        not a bound.
    :raises ValueError: if the SVI has no loss object, or params are missing.
    :raises TypeError: if ``svi_state`` is neither state, result nor params.
    """
    loss = _loss_of(svi)
    params, rng_key = _params_of(svi, svi_state)
    kwargs = {**kwargs, **svi.static_kwargs}
    _check_params(svi, params, args, kwargs)
    value, logits = _ask(loss, svi, random.fold_in(rng_key, _LOOK), params, args, kwargs)
    return figures_of(describe(loss), value, logits)


def report(
    path: str | os.PathLike[str],
    svi: SVI,
    svi_state: Any,
    *args: Any,
    losses: ArrayLike | None = None,
    history: History | None = None,
    num_samples: int = 1000,
    image_shape: Sequence[int] | None = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    warnings: Iterable[Any] = (),
    datum: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Report:
    """
    Write one HTML page about a training run and its results.

    The page holds everything it needs, pictures included: loss and divergence curves, the model's
    samples next to the data, sample metrics, calibration of the critic, overlap of supports, the
    posterior's pair plot, warnings, settings and versions. If a loss lacks something, the page says
    so. Samples and metrics are of clean draws, without spread noise. Nothing of the run is changed.

        >>> import jax, numpyro, numpyro.distributions as dist, optax, tempfile
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import MMD, GaussianKernel, report
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, optax.adam(0.1), MMD(GaussianKernel(1.0)))
        >>> x = jax.random.normal(jax.random.key(1), (100,))
        >>> result = svi.run(jax.random.key(0), 20, x, progress_bar=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(f"{folder}/run.html", svi, result, x)
        ...     page.path.name
        'run.html'

    :param path: of the page; an older one is replaced.
    :param svi: an SVI.
    :param svi_state: its state; or what ``svi.run`` returned, whose losses are shown if none are
        given; or params by name.
    :param args: positional arguments of model and guide, the data among them: held-out ones tell
        more, a few thousand are enough. Latents in no plate of the data come from the guide, all
        others from the prior.
    :param losses: the loss of every step.
    :param history: the values of :func:`diagnose` during training.
    :param num_samples: how many samples, and data, are shown and compared.
    :param image_shape: ``(height, width)``, maybe with a channel axis, if the data are images.
    :param title: of the page.
    :param settings: further settings by name, to be noted on the page: optax does not tell its own.
    :param warnings: warnings of the training run, such as ``catch_warnings(record=True)`` gives;
        those of this library's losses are known without it.
    :param datum: index of the datum whose posterior is shown; None is all together.
    :param seed: of the draws for this page.
    :param kwargs: keyword arguments of model and guide.
    :return: what the page shows, as arrays.
    :raises ValueError: if the model observes nothing, params are missing, or an argument does not
        fit; nothing is written then.
    :raises TypeError: if ``svi_state`` is neither state, result nor params.
    :raises OSError: if the page cannot be written.
    :raises ImportError: if the ``analysis`` extra is missing.
    """
    if losses is None and isinstance(svi_state, SVIRunResult):
        losses = np.asarray(svi_state.losses)
    options = Options(
        path, losses, history, num_samples, image_shape, title, settings, warnings, datum, seed
    )
    loss = _loss_of(svi)
    params, rng_key = _params_of(svi, svi_state)
    kwargs = {**kwargs, **svi.static_kwargs}
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always")
        _check_params(svi, params, args, kwargs)
        draws = _draw(loss, svi, options, params, args, kwargs)
    draws.troubles += caught
    backend = {
        "Optimiser": _describe_optimiser(svi.optim),
        "Networks": _describe_networks(loss, params),
        "Seeds": {} if isinstance(svi_state, Mapping) else {"key of the state": _key_data(rng_key)},
    }
    found = assemble(options, loss, draws, backend, ("jax", "numpyro", "optax", "flax"))
    write_report(found)
    for item in caught:  # they are on the page, and heard of too
        python_warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    return found


def _loss_of(svi: SVI) -> Any:
    loss = loss_of(svi)
    if not isinstance(loss, ELBO):
        raise ValueError(report_messages.report_no_loss(loss))
    return loss


def _params_of(svi: SVI, svi_state: Any) -> tuple[dict[str, Any], jax.Array]:
    """Values of param and mutable sites, and the key of the state."""
    if isinstance(svi_state, SVIRunResult):
        svi_state = svi_state.state
    if isinstance(svi_state, SVIState):
        params = dict(svi.get_params(svi_state)) | dict(svi_state.mutable_state or {})
        return params, svi_state.rng_key
    if isinstance(svi_state, Mapping):
        return dict(svi_state), random.key(0)
    wanted = "an SVIState, what svi.run returned, or a dict of params"
    raise TypeError(players.bad_range("svi_state", type(svi_state).__name__, wanted))


def _check_params(svi: SVI, params: Mapping[str, Any], args: Any, kwargs: Any) -> None:
    """Model and guide would make up what is missing; they are traced, nothing is computed."""
    wanted: set[str] = set()

    def look(key: jax.Array) -> None:
        for fn in (svi.model, svi.guide or no_guide):
            with trace() as sites:
                seeded(fn, key)(*args, **kwargs)
            wanted.update(n for n, s in sites.items() if s["type"] in ("param", "mutable"))

    jax.eval_shape(look, random.key(0))
    if wanted - set(params):
        way_out = "Pass the state of this SVI, or what its run returned; they have all of them."
        raise ValueError(report_messages.report_unknown_params(wanted - set(params), way_out))


def _ask(
    loss: Any, svi: SVI, rng_key: jax.Array, params: Any, args: Any, kwargs: Any
) -> tuple[float, dict[str, CriticLogits]]:
    """What the loss reports, and the logits of its critics by critic."""
    if not isinstance(loss, Loss):
        return float(loss.loss(rng_key, params, svi.model, svi.guide, *args, **kwargs)), {}
    value, said = loss.look(rng_key, params, svi.model, svi.guide, *args, **kwargs)
    return value, {name: CriticLogits.of(logits) for name, logits in said.items()}


def _draw(
    loss: Any, svi: SVI, options: Options, params: dict[str, Any], args: Any, kwargs: Any
) -> Draws:
    model, number = svi.model, options.num_samples
    first_key, model_key, guide_key, ask_key = random.split(random.key(options.seed), 4)
    sites = run(svi.guide or no_guide, first_key, params, {}, args, kwargs)
    plates = _data_plates(model, first_key, params, args, kwargs)
    shared = {n for n, s in sites.items() if is_latent(s) and not _plates_of(s) & plates}

    def forward(key: jax.Array) -> dict[str, Any]:
        """Sites of the model, global latents and subsamples being the guide's."""
        own_key, key = random.split(key)
        sites = run(svi.guide or no_guide, own_key, params, {}, args, kwargs)
        fixed = {n: s["value"] for n, s in sites.items() if s["type"] == "plate" or n in shared}
        return run_forward(model, key, params, fixed, args, kwargs)

    sites = forward(first_key)
    observed = {n: s for n, s in sites.items() if is_compared(s) and not isinstance(s["fn"], Unit)}
    if not observed:
        raise ValueError(report_messages.report_no_data())
    data, samples = {}, {}
    masks = {n: mask_at(n, site, jnp.shape(site["value"])) for n, site in observed.items()}
    for name, site in observed.items():
        obs = jnp.broadcast_to(site["infer"]["obs"], jnp.shape(site["value"]))
        if masks[name] is not None:
            masks[name] = datum_rows(masks[name], site)[0]
        data[name] = rows_of(*datum_rows(obs, site), masks[name])
    count = max(1, len(next(iter(data.values()))))

    def values(key: jax.Array) -> dict[str, Any]:
        sites = forward(key)
        return {name: sites[name]["value"] for name in observed}

    drawn = lax.map(values, random.split(model_key, -(-number // count)))
    for name, site in observed.items():
        rows = [rows_of(*datum_rows(v, site), masks[name]) for v in drawn[name]]
        samples[name] = np.concatenate(rows)

    one_by_one = bool(shared) or options.datum is not None
    num_runs = number if one_by_one else -(-number // count)
    runs = _posterior(loss, svi, guide_key, num_runs, params, args, kwargs)
    latents, latents_of = pool_latents(runs, shared, options.datum)
    counted = _num_data(observed, sites)
    draws = Draws(data, samples, latents, latents_of, num_data=counted)
    try:
        draws.value, draws.logits = _ask(loss, svi, ask_key, params, args, kwargs)
    except ValueError as error:
        draws.loss_refused(error)
    return draws


def _num_data(observed: Mapping[str, Any], sites: Mapping[str, Any]) -> float:
    """How many data the sites are of: elements of the outermost plate, scaled as the loss is."""
    counted = []
    for name, site in observed.items():
        shape = jnp.shape(site["value"])
        scale = np.unique(1.0 if site["scale"] is None else np.asarray(site["scale"]))
        if len(scale) > 1:
            return math.nan
        mask = mask_at(name, site, shape)
        kept = np.ones(shape, bool) if mask is None else np.asarray(mask)
        axes = [frame.dim - site["fn"].event_dim for frame in frames_of(site)[:1]]
        inner = parts_left_out(site, sites)
        counted.append((any_of_datum(kept, axes), float(scale[0]) / inner))
    return count_data(counted)


def _posterior(
    loss: Any, svi: SVI, rng_key: jax.Array, num_runs: int, params: Any, args: Any, kwargs: Any
) -> list[dict[str, tuple[Any, int]]]:
    """Latents and their event dims, run by run, given what the guide was trained to see."""
    guide = svi.guide
    noise_key, draw_key = random.split(rng_key)
    if isinstance(loss, Loss):
        trained = loss.guide_as_trained(noise_key, params, svi.model, guide, args, kwargs)
        guide, args, kwargs = trained
    event_dims: dict[str, int] = {}

    def values(key: jax.Array) -> dict[str, Any]:
        sites = run(guide or no_guide, key, params, {}, args, kwargs)
        latents = {
            n: s for n, s in sites.items() if is_latent(s) and not s["infer"].get("is_auxiliary")
        }
        rows = {name: datum_rows(site["value"], site) for name, site in latents.items()}
        event_dims.update({name: event_dim for name, (_, event_dim) in rows.items()})
        return {name: value for name, (value, _) in rows.items()}

    drawn = lax.map(values, random.split(draw_key, num_runs))
    host = {name: np.asarray(value) for name, value in drawn.items()}
    return [{n: (v[index], event_dims[n]) for n, v in host.items()} for index in range(num_runs)]


def _key_data(rng_key: jax.Array) -> str:
    is_typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    return str(np.asarray(random.key_data(rng_key) if is_typed else rng_key).tolist())


def _describe_optimiser(optim: Any) -> dict[str, str]:
    """Its class: what is inside an optax optimiser it does not tell."""
    if isinstance(optim, FiniteGuard):
        return _describe_optimiser(optim.guarded) | {"on_nonfinite": optim.on_nonfinite}
    kind = type(optim).__name__
    return {"optimiser": "an optax optimiser" if kind == "_NumPyroOptim" else shorten(kind)}


def _describe_networks(loss: Any, params: Mapping[str, Any]) -> dict[str, str]:
    """Names of the nets and their numbers of params."""
    found = {}
    for site, value in params.items():
        count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(value))
        found[site.removesuffix("$params")] = f"{count:,} params"
    net = getattr(loss, "discriminator", None)
    if net is not None and not isinstance(net, Mapping) and loss.name in found:
        found[loss.name] = f"{type(net).__name__}, {found[loss.name]}"
    return found
