# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Adversarial variational Bayes against a VAE with the same decoder
=================================================================

All models begin as one VAE. After some steps they part: the VAE goes on with its
Gaussian encoder, the others with one without a density, which starts as the Gaussian one and may
bend its codes into any shape: by ``PriorContrastELBO`` with the adaptive and the plain contrast
(Mescheder et al., https://arxiv.org/abs/1701.04722), and by ``SemiImplicitELBO`` without a critic.
Beside them stand the same guide with its density, which is as far as a critic without errors would
come, and IWAE with five samples of the Gaussian one (Burda et al., https://arxiv.org/abs/1509.00519).

What a contrast ELBO reports is an estimate, not a bound. Hence log p(x) of test images is measured
without any critic: by importance weights from a guide that is fitted to the finished decoder, and
by annealed importance sampling. With the plain contrast the reported value is the best of all, and
the decoder the worst: of this ``FalseEvidenceWarning`` warns during the training.

    python examples/numpyro/avb_vae.py --output avb-vae
    python examples/numpyro/avb_vae.py --dataset mnist --data-dir DIR --num-seeds 3
"""

from __future__ import annotations

import functools
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax import lax, random
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.distributions import constraints
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from studies.avb_vae_study import (
    NUM_SHOWN,
    Fit,
    batches,
    compare,
    load_images,
    parse_args,
)

from numpyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    ais_log_likelihood,
    concat_sites,
    importance_weighted_bound,
    two_player,
)
from numpyro_spread.ratio import site_features

# PyTorch's default, so that both backends start alike.
Dense = functools.partial(
    nn.Dense, kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
)


class MLP(nn.Module):
    hidden_dim: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(Dense(self.hidden_dim)(x))
        return Dense(self.num_outputs)(x)


class Encoder(nn.Module):
    """Mean and standard deviation of the codes of x, and the features that they come from."""

    hidden_dim: int
    latent_dim: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(Dense(self.hidden_dim)(x))
        loc, log_scale = jnp.split(Dense(2 * self.latent_dim)(x), 2, -1)
        return loc, jnp.exp(log_scale), x


class Bend(nn.Module):
    """
    Map noise to codes, one half bent by the other: at first those of the Gaussian encoder, later of
    any shape.

    One to one, so that there is a density beside it, which only ``exact_guide`` reads.
    """

    hidden_dim: int
    sizes: tuple[int, int]

    def setup(self):
        self.first, self.second = (Move(self.hidden_dim, size) for size in self.sizes)

    def __call__(self, loc, scale, features, eps):
        first, second = jnp.split(eps, self.sizes[:1], -1)
        shift, log_scale = self.second(first, features)
        second = second * jnp.exp(log_scale) + shift
        shift, log_scale = self.first(second, features)
        first = first * jnp.exp(log_scale) + shift
        return loc + scale * jnp.concatenate([first, second], -1)

    def log_prob(self, loc, scale, features, codes):
        first, second = jnp.split((codes - loc) / scale, self.sizes[:1], -1)
        shift, log_scale = self.first(second, features)
        first = (first - shift) * jnp.exp(-log_scale)
        log_det = jnp.log(scale).sum(-1) + log_scale.sum(-1)
        shift, log_scale = self.second(first, features)
        second = (second - shift) * jnp.exp(-log_scale)
        log_det = log_det + log_scale.sum(-1)
        return dist.Normal().log_prob(jnp.concatenate([first, second], -1)).sum(-1) - log_det


class Move(nn.Module):
    """By how much one half is moved and widened, as the other one says."""

    hidden_dim: int
    num_moved: int

    @nn.compact
    def __call__(self, other, features):
        hidden = nn.relu(Dense(self.hidden_dim)(features) + Dense(self.hidden_dim)(other))
        out = nn.Dense(2 * self.num_moved, kernel_init=nn.initializers.zeros)(hidden)
        shift, log_scale = jnp.split(out, 2, -1)
        return shift, jnp.tanh(log_scale)


def along_path(log_prob, z):
    """
    The log density at a draw, whose gradient passes through the draw alone, as that of a critic
    does. The rest of it has mean zero (Roeder et al. 2017, https://arxiv.org/abs/1703.09194).
    """
    still = lax.stop_gradient(z)
    values, pull = jax.vjp(log_prob, still)
    (slope,) = lax.stop_gradient(pull(jnp.ones_like(values)))
    return lax.stop_gradient(values) + (slope * (z - still)).sum(-1)


class Head(nn.Module):
    """
    Mean and Cholesky factor of the contrast: at first those of the Gaussian encoder as it is at
    that step, so that what must be learned is the difference that the bend makes.
    """

    latent_dim: int

    @nn.compact
    def __call__(self, inputs):
        size = self.latent_dim
        start = inputs.shape[-1] - 2 * size
        features, centre, width = jnp.split(inputs, [start, start + size], -1)
        out = nn.Dense(size * (size + 3) // 2, kernel_init=nn.initializers.zeros)(features)
        loc, log_scale, lower = jnp.split(out, [size, 2 * size], -1)
        return centre + width * loc, cholesky(width * jnp.exp(log_scale), lower)


class Critic(nn.Module):
    """Logits; what it makes of an image's features serves all codes of the image."""

    hidden_dim: int

    @nn.compact
    def __call__(self, values, *args, **kwargs):
        features, codes = (site_features(values, name) for name in ("features", "z"))
        hidden = nn.relu(nn.Dense(self.hidden_dim)(features) + nn.Dense(self.hidden_dim)(codes))
        hidden = nn.relu(nn.Dense(self.hidden_dim)(hidden))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(hidden).squeeze(-1)


def cholesky(scale, lower):
    """Lower triangular matrices with this diagonal, the rows in units of it."""
    size = scale.shape[-1]
    tril = jnp.broadcast_to(jnp.eye(size), (*scale.shape, size))
    return scale[..., None] * tril.at[(..., *np.tril_indices(size, -1))].set(lower)


class VAE:
    """A decoder and the guides for its training and evaluation."""

    def __init__(self, args, num_pixels):
        hidden_dim, latent_dim = args.hidden_dim, args.latent_dim
        self.num_pixels, self.latent_dim, self.hidden_dim = num_pixels, latent_dim, hidden_dim
        self.decoder = MLP(hidden_dim, num_pixels)
        self.encoder = Encoder(hidden_dim, latent_dim)
        self.bend = Bend(args.bend_dim, (latent_dim // 2, latent_dim - latent_dim // 2))
        self.lower = nn.Dense(latent_dim * (latent_dim - 1) // 2, kernel_init=nn.initializers.zeros)
        self.prior = dist.Normal(jnp.zeros(latent_dim), 1.0).to_event(1)

    def model(self, x):
        decoder = flax_module("decoder", self.decoder, input_shape=(self.latent_dim,))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", self.prior)
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def encode(self, x):
        return flax_module("encoder", self.encoder, input_shape=(self.num_pixels,))(x)

    def gaussian_guide(self, x):
        loc, scale, _ = self.encode(x)
        with numpyro.plate("data", len(x)):
            return numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def implicit_guide(self, x):
        with numpyro.plate("data", len(x)):
            codes = ImplicitDistribution(self.bent(x), self.prior, event_shape=(self.latent_dim,))
            return numpyro.sample("z", codes)

    def exact_guide(self, x):
        """The same codes, with their density: what a critic that made no errors would reach."""
        with numpyro.plate("data", len(x)):
            draw = self.bent(x)
            eps = numpyro.sample("eps", self.prior, infer={"is_auxiliary": True})
            z = draw(eps)
            log_prob = along_path(functools.partial(draw, method="log_prob"), z)
            # The ELBO has the density of eps already.
            codes = dist.Delta(z, log_density=log_prob - self.prior.log_prob(eps), event_dim=1)
            return numpyro.sample("z", codes)

    def bent(self, x):
        """From noise to codes of x."""
        loc, scale, features = self.encode(x)
        # Critic and contrast see x as the encoder does now.
        for name, value in (("features", features), ("loc", loc), ("scale", scale)):
            numpyro.deterministic(name, value)
        bend = flax_module("bend", self.bend, loc[0], scale[0], features[0], loc[0])
        return functools.partial(bend, loc, scale, features)

    def kernel(self, x):
        """Noise on the implicit codes, as wide as a learned share of the Gaussian ones."""
        half = jnp.full(self.latent_dim, 0.5)
        share = numpyro.param("share", half, constraint=constraints.positive)
        return {"z": GaussianNoise(share * self.encode(x)[1])}

    def proposal(self, x, df=None):
        """
        Proposal for importance weights: the encoder's, with correlations and optionally heavier
        tails.
        """
        loc, scale, features = self.encode(x)
        lower = flax_module("lower", self.lower, input_shape=(self.hidden_dim,))(features)
        tril = cholesky(scale, lower)
        if df is None:
            codes = dist.MultivariateNormal(loc, scale_tril=tril)
        else:
            codes = dist.MultivariateStudentT(df, loc, tril)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", codes)

    def decode(self, params, z):
        return nn.sigmoid(self.decoder.apply({"params": params["decoder$params"]}, z))


def adam(rate, num_steps, b1=0.9):
    """Adam with a learning rate that falls to zero."""
    return optax.adam(optax.linear_schedule(rate, 0.0, num_steps), b1=b1)


def train(svi, rng_key, x, num_updates, batch_size, seed, start=None):
    """A whole run, which begins with the params of ``start``, in one program."""
    indices = jnp.asarray(batches(len(x), batch_size, num_updates, seed))

    @jax.jit
    def run(rng_key, x, indices, start):
        state = svi.init(rng_key, x[:1], init_params=start)
        state, _ = lax.scan(lambda s, batch: (svi.update(s, x[batch])[0], None), state, indices)
        return svi.get_params(state)

    # Warnings come by way of the host: when the results are there.
    return jax.block_until_ready(run(rng_key, x, indices, start))


def log_evidence(args, vae, rng_key, params, start, test):
    """Log p(x) by importance weights from a guide that is fitted to the decoder as it is."""
    fit_key, weight_key = random.split(rng_key)
    decoder = {"decoder$params": params["decoder$params"]}
    fixed = handlers.block(handlers.substitute(vae.model, decoder), hide=list(decoder))
    svi = SVI(fixed, vae.proposal, adam(1e-3, args.proposal_steps), Trace_ELBO())
    encoder = {"encoder$params": start["encoder$params"]}
    fitted = train(svi, fit_key, test, args.proposal_steps, args.batch_size, args.seed, encoder)
    with_tails = functools.partial(vae.proposal, df=10.0)
    return importance_weighted_bound(
        weight_key, decoder | fitted, vae.model, with_tails, test, num_samples=args.num_weights
    )


def fit_model(args, name, seed, start, x, test, wants_ais):
    """Train from ``start`` on, and evaluate the result."""
    vae = VAE(args, x.shape[-1])
    *keys, check_key, draw_key, prior_key, evidence_key, ais_key = random.split(
        random.key(seed), 5 + args.num_evaluations + 1
    )
    num_updates = num_steps = args.num_steps - args.start_steps
    guide, optim = vae.implicit_guide, adam(args.learning_rate, num_steps)
    if name == "vae":
        guide, loss = vae.gaussian_guide, Trace_ELBO()
    elif name == "iwae":
        guide, loss = vae.gaussian_guide, RenyiELBO(alpha=0.0, num_particles=5)
    elif name == "exact":
        guide, loss = vae.exact_guide, Trace_ELBO()
    elif name == "semi-implicit":
        loss = SemiImplicitELBO(vae.kernel, args.num_mixture)
    else:
        # The whole difference between the run that holds and the one that does not: the contrast.
        adaptive = name == "avb"
        head = concat_sites(Head(vae.latent_dim), "features", "loc", "scale")
        loss = PriorContrastELBO(
            Critic(args.hidden_dim),
            adaptive=adaptive,
            head=head if adaptive else None,
            num_critic_draws=args.critic_draws,
        )
        num_updates = args.critic_steps * num_steps
        optim = two_player(
            optim,
            adam(args.critic_learning_rate, num_updates, b1=0.5),
            args.critic_steps,
        )
    registered = loss.register(vae.model, guide) if hasattr(loss, "register") else guide
    svi = SVI(vae.model, registered, optim, loss)

    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        params = train(svi, keys.pop(), x, num_updates, args.batch_size, seed + 1, start)
    seconds = time.perf_counter() - began

    def reported(loss, guide):
        def one(key):
            return -loss.loss(key, params, vae.model, guide, test) / len(test)

        return float(jax.jit(lambda keys: lax.map(one, keys))(jnp.stack(keys)).mean())

    is_avb = name.startswith("avb")
    check = ais = None
    if is_avb and args.num_checked:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says it
            check = loss.held_out_check(
                check_key, params, vae.model, registered, test[: args.num_checked],
                num_steps=args.check_steps,
            )  # fmt: skip
    if wants_ais:
        ais = ais_log_likelihood(
            ais_key, params, vae.model, test[: args.num_ais],
            num_temperatures=args.num_temperatures, num_chains=8,
        )  # fmt: skip
    posterior = loss.spread_guide(vae.model, guide) if name == "semi-implicit" else guide

    @jax.jit
    def show(params, x):
        codes = handlers.seed(handlers.substitute(posterior, params), draw_key)(x)
        return vae.decode(params, jnp.stack([codes, vae.prior.sample(prior_key, codes.shape[:1])]))

    reconstructions, samples = np.asarray(show(params, test[:NUM_SHOWN]))
    return Fit(
        estimate=reported(loss, registered),
        exact=reported(Trace_ELBO(), vae.exact_guide) if is_avb else float("nan"),
        evidence=log_evidence(args, vae, evidence_key, params, start, test),
        ais=ais,
        check=check,
        warned=tuple(warning.category.__name__ for warning in caught),
        reconstructions=reconstructions,
        samples=samples,
        seconds=seconds,
    )


def main(args):
    numpyro.set_platform(args.device)
    images = load_images(args)
    x, test = jnp.asarray(images.train), jnp.asarray(images.test)

    @functools.lru_cache(maxsize=1)
    def start(seed):
        """The VAE after the steps that all models have in common."""
        vae = VAE(args, x.shape[-1])
        svi = SVI(vae.model, vae.gaussian_guide, optax.adam(args.learning_rate), Trace_ELBO())
        return train(svi, random.key(seed), x, args.start_steps, args.batch_size, seed)

    def fit(name, seed, wants_ais):
        return fit_model(args, name, seed, start(seed), x, test, wants_ais)

    return compare("numpyro", args, images, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
