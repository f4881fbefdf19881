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

    python examples/pyro/avb_vae.py --output avb-vae
    python examples/pyro/avb_vae.py --dataset mnist --data-dir DIR --num-seeds 3
    python examples/pyro/avb_vae.py --compile
"""

from __future__ import annotations

import copy
import functools
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import LambdaLR
from studies.avb_vae_study import (
    NUM_SHOWN,
    Fit,
    batches,
    compare,
    load_images,
    parse_args,
)
from torch import nn
from torch.distributions import constraints

from pyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    ais_log_likelihood,
    compiled,
    concat_sites,
    importance_weighted_bound,
    two_player,
)
from pyro_spread.ratio import site_features


def mlp(num_inputs, hidden_dim, num_outputs):
    return nn.Sequential(
        nn.Linear(num_inputs, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, num_outputs),
    )


class Encoder(nn.Module):
    """Mean and standard deviation of the codes of x, and the features that they come from."""

    def __init__(self, num_pixels, hidden_dim, latent_dim):
        super().__init__()
        *features, self.moments = mlp(num_pixels, hidden_dim, 2 * latent_dim)
        self.features = nn.Sequential(*features)

    def forward(self, x):
        features = self.features(x)
        loc, log_scale = self.moments(features).chunk(2, -1)
        return loc, log_scale.exp(), features


class Bend(nn.Module):
    """
    Map noise to codes, one half bent by the other: at first those of the Gaussian encoder, later of
    any shape.

    One to one, so that there is a density beside it, which only ``exact_guide`` reads.
    """

    def __init__(self, num_features, hidden_dim, latent_dim):
        super().__init__()
        self.sizes = latent_dim // 2, latent_dim - latent_dim // 2
        self.second = Move(num_features, hidden_dim, *self.sizes)
        self.first = Move(num_features, hidden_dim, *reversed(self.sizes))

    def forward(self, loc, scale, features, eps):
        first, second = eps.split(self.sizes, -1)
        shift, log_scale = self.second(first, features)
        second = second * log_scale.exp() + shift
        shift, log_scale = self.first(second, features)
        first = first * log_scale.exp() + shift
        return loc + scale * torch.cat([first, second], -1)

    def log_prob(self, loc, scale, features, codes):
        first, second = ((codes - loc) / scale).split(self.sizes, -1)
        shift, log_scale = self.first(second, features)
        first = (first - shift) * (-log_scale).exp()
        log_det = scale.log().sum(-1) + log_scale.sum(-1)
        shift, log_scale = self.second(first, features)
        second = (second - shift) * (-log_scale).exp()
        log_det = log_det + log_scale.sum(-1)
        eps = torch.cat([first, second], -1)
        return dist.Normal(torch.zeros_like(eps), 1.0).log_prob(eps).sum(-1) - log_det


class Move(nn.Module):
    """By how much one half is moved and widened, as the other one says."""

    def __init__(self, num_features, hidden_dim, num_others, num_moved):
        super().__init__()
        self.features = nn.Linear(num_features, hidden_dim)
        self.others = nn.Linear(num_others, hidden_dim)
        self.out = zeroed(nn.Linear(hidden_dim, 2 * num_moved))

    def forward(self, other, features):
        hidden = torch.relu(self.features(features) + self.others(other))
        shift, log_scale = self.out(hidden).chunk(2, -1)
        return shift, log_scale.tanh()


def along_path(log_prob, z):
    """
    The log density at a draw, whose gradient passes through the draw alone, as that of a critic
    does. The rest of it has mean zero (Roeder et al. 2017, https://arxiv.org/abs/1703.09194).
    """
    still = z.detach().requires_grad_()
    with torch.enable_grad():
        values = log_prob(still)
        (slope,) = torch.autograd.grad(values.sum(), still)
    return values.detach() + (slope * (z - still.detach())).sum(-1)


class Head(nn.Module):
    """
    Mean and Cholesky factor of the contrast: at first those of the Gaussian encoder as it is at
    that step, so that what must be learned is the difference that the bend makes.
    """

    def __init__(self, num_features, latent_dim):
        super().__init__()
        self.num_inputs = num_features, latent_dim, latent_dim
        self.sizes = latent_dim, latent_dim, latent_dim * (latent_dim - 1) // 2
        self.out = zeroed(nn.Linear(num_features, sum(self.sizes)))

    def forward(self, inputs):
        features, centre, width = inputs.split(self.num_inputs, -1)
        loc, log_scale, lower = self.out(features).split(self.sizes, -1)
        return centre + width * loc, cholesky(width * log_scale.exp(), lower)


class Critic(nn.Module):
    """Logits; what it makes of an image's features serves all codes of the image."""

    def __init__(self, num_features, hidden_dim, latent_dim):
        super().__init__()
        self.features = even(nn.Linear(num_features, hidden_dim))
        self.codes = even(nn.Linear(latent_dim, hidden_dim))
        self.hidden = even(nn.Linear(hidden_dim, hidden_dim))
        self.out = zeroed(nn.Linear(hidden_dim, 1))

    def forward(self, values, *args, **kwargs):
        features, codes = (site_features(values, name) for name in ("features", "z"))
        if values.batch_ndim > 1:  # several codes of each image
            features = features[0]
        hidden = torch.relu(self.features(features) + self.codes(codes))
        return self.out(torch.relu(self.hidden(hidden))).squeeze(-1)


def cholesky(scale, lower):
    """Lower triangular matrices with this diagonal, the rows in units of it."""
    size = scale.shape[-1]
    rows, columns = torch.tril_indices(size, size, -1, device=scale.device)
    tril = torch.eye(size, device=scale.device).repeat(*scale.shape[:-1], 1, 1)
    tril[..., rows, columns] = lower
    return scale.unsqueeze(-1) * tril


def even(layer):
    """Start at unit gain, as flax does: with PyTorch's own start critics learn slower."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return layer


def zeroed(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class VAE(nn.Module):
    """A decoder and the guides for its training and evaluation."""

    def __init__(self, args, num_pixels):
        super().__init__()
        hidden_dim, latent_dim = args.hidden_dim, args.latent_dim
        self.latent_dim = latent_dim
        self.decoder = mlp(latent_dim, hidden_dim, num_pixels)
        self.encoder = Encoder(num_pixels, hidden_dim, latent_dim)
        self.bend = Bend(hidden_dim, args.bend_dim, latent_dim)
        self.register_buffer("zeros", torch.zeros(latent_dim))

    @property
    def prior(self):
        return dist.Normal(self.zeros, 1.0).to_event(1)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def encode(self, x):
        pyro.module("encoder", self.encoder)
        return self.encoder(x)

    def gaussian_guide(self, x):
        loc, scale, _ = self.encode(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def implicit_guide(self, x):
        with pyro.plate("data", len(x)):
            draw = functools.partial(self.bend, *self.bent(x))
            codes = ImplicitDistribution(draw, self.prior, event_shape=(self.latent_dim,))
            return pyro.sample("z", codes)

    def exact_guide(self, x):
        """The same codes, with their density: what a critic that made no errors would reach."""
        with pyro.plate("data", len(x)):
            seen = self.bent(x)
            eps = pyro.sample("eps", self.prior, infer={"is_auxiliary": True})
            z = self.bend(*seen, eps)
            log_prob = along_path(functools.partial(self.bend.log_prob, *seen), z)
            # The ELBO has the density of eps already.
            codes = dist.Delta(z, log_density=log_prob - self.prior.log_prob(eps), event_dim=1)
            return pyro.sample("z", codes)

    def bent(self, x):
        """What bends noise to codes of x."""
        pyro.module("bend", self.bend)
        loc, scale, features = self.encode(x)
        # Critic and contrast see x as the encoder does now.
        for name, value in (("features", features), ("loc", loc), ("scale", scale)):
            pyro.deterministic(name, value, event_dim=1)
        return loc, scale, features

    def kernel(self, x):
        """Noise on the implicit codes, as wide as a learned share of the Gaussian ones."""
        half = torch.full_like(self.zeros, 0.5)
        share = pyro.param("share", half, constraint=constraints.positive)
        return {"z": GaussianNoise(share * self.encode(x)[1])}


class Proposal(nn.Module):
    """
    Proposal for importance weights: the encoder's, with correlations and optionally heavier tails.
    """

    def __init__(self, encoder, latent_dim):
        super().__init__()
        self.encoder, self.latent_dim = copy.deepcopy(encoder), latent_dim
        hidden_dim = encoder.moments.in_features
        self.lower = zeroed(nn.Linear(hidden_dim, latent_dim * (latent_dim - 1) // 2))

    def guide(self, x, df=None):
        pyro.module("proposal", self)
        loc, scale, features = self.encoder(x)
        tril = cholesky(scale, self.lower(features))
        if df is None:
            codes = dist.MultivariateNormal(loc, scale_tril=tril)
        else:
            codes = dist.MultivariateStudentT(df, loc, tril)
        with pyro.plate("data", len(x)):
            pyro.sample("z", codes)


def adam(rate, num_steps, b1=0.9):
    """Adam with a learning rate that falls to zero."""
    return LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": rate, "betas": (b1, 0.999)},
            "lr_lambda": lambda step: 1 - step / num_steps,
        }
    )


def train(svi, x, num_updates, batch_size, seed):
    for batch in torch.from_numpy(batches(len(x), batch_size, num_updates, seed)).to(x.device):
        svi.step(x[batch])
        if hasattr(svi.optim, "step"):  # the next learning rate
            svi.optim.step()


def log_evidence(args, vae, start, test):
    """Log p(x) by importance weights from a guide that is fitted to the decoder as it is."""
    pyro.clear_param_store()
    vae.decoder.requires_grad_(False).eval()
    proposal = Proposal(start.encoder, args.latent_dim)
    svi = SVI(vae.model, proposal.guide, adam(1e-3, args.proposal_steps), Trace_ELBO())
    train(svi, test, args.proposal_steps, args.batch_size, args.seed)
    with_tails = functools.partial(proposal.guide, df=10.0)
    return importance_weighted_bound(vae.model, with_tails, test, num_samples=args.num_weights)


def fit_model(args, name, seed, start, x, test, wants_ais):
    """Train from ``start`` on, and evaluate the result."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = copy.deepcopy(start)
    num_updates = num_steps = args.num_steps - args.start_steps
    guide, optim = vae.implicit_guide, adam(args.learning_rate, num_steps)
    if name == "vae":
        guide, loss = vae.gaussian_guide, Trace_ELBO()
    elif name == "iwae":
        guide = vae.gaussian_guide
        loss = RenyiELBO(alpha=0.0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    elif name == "exact":
        guide, loss = vae.exact_guide, Trace_ELBO()
    elif name == "semi-implicit":
        loss = SemiImplicitELBO(vae.kernel, args.num_mixture)
    else:
        # The whole difference between the run that holds and the one that does not: the contrast.
        adaptive = name == "avb"
        head = Head(args.hidden_dim, args.latent_dim).to(x.device)
        loss = PriorContrastELBO(
            Critic(args.hidden_dim, args.hidden_dim, args.latent_dim).to(x.device),
            adaptive=adaptive,
            head=concat_sites(head, "features", "loc", "scale") if adaptive else None,
            num_critic_draws=args.critic_draws,
        )
        num_updates = args.critic_steps * num_steps
        optim = two_player(
            adam(args.learning_rate, num_updates),
            adam(args.critic_learning_rate, num_updates, b1=0.5),
            args.critic_steps,
        )
    if args.compile:
        loss = compiled(loss)
    svi = SVI(vae.model, guide, optim, loss)

    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(svi, x, num_updates, args.batch_size, seed + 1)
    seconds = time.perf_counter() - began

    def reported(loss, guide):
        seen = SVI(vae.model, guide, optim, loss)
        nats = [seen.evaluate_loss(test) for _ in range(args.num_evaluations)]
        return -float(np.mean(nats)) / len(test)

    is_avb = name.startswith("avb")
    estimate = reported(loss, guide)
    exact = reported(Trace_ELBO(), vae.exact_guide) if is_avb else float("nan")
    check = ais = None
    if is_avb and args.num_checked:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says it
            check = loss.held_out_check(
                vae.model, guide, test[: args.num_checked], num_steps=args.check_steps
            )
    posterior = loss.spread_guide(vae.model, guide) if name == "semi-implicit" else guide
    with torch.no_grad():
        reconstructions = vae.decoder(posterior(test[:NUM_SHOWN])).sigmoid()
        samples = vae.decoder(vae.prior.sample((NUM_SHOWN,))).sigmoid()
    evidence = log_evidence(args, vae, start, test)
    if wants_ais:
        ais = ais_log_likelihood(
            vae.model, test[: args.num_ais], num_temperatures=args.num_temperatures, num_chains=8
        )
    return Fit(
        estimate=estimate,
        exact=exact,
        evidence=evidence,
        ais=ais,
        check=check,
        warned=tuple(warning.category.__name__ for warning in caught),
        reconstructions=reconstructions.cpu().numpy(),
        samples=samples.cpu().numpy(),
        seconds=seconds,
    )


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    images = load_images(args)
    x, test = torch.from_numpy(images.train).to(device), torch.from_numpy(images.test).to(device)

    @functools.lru_cache(maxsize=1)
    def start(seed):
        """The VAE after the steps that all models have in common."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        vae = VAE(args, x.shape[-1]).to(device)
        optim = pyro.optim.Adam({"lr": args.learning_rate})
        svi = SVI(vae.model, vae.gaussian_guide, optim, Trace_ELBO())
        train(svi, x, args.start_steps, args.batch_size, seed)
        return vae

    def fit(name, seed, wants_ais):
        return fit_model(args, name, seed, start(seed), x, test, wants_ais)

    return compare("pyro", args, images, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
