# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The zoo's autoregressive nets look back only, VQ-VAE's number is a bound; in both backends."""

import importlib
import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import binom, chisquare
from studies.zoo import MAX_COUNT, NUM_LEVELS

ROOT = Path(__file__).parents[2]
NETS = ("pixel_cnn", "dilated", "row_lstm", "recurrent")
HIDDEN = 64  # so that no net is narrow enough to lose a pixel among units that are off


@pytest.fixture(params=["pyro", "numpyro"])
def backend(request):
    pytest.importorskip(f"{request.param}_spread")
    return request.param


@pytest.fixture
def load(backend, monkeypatch):
    """Import a file of the zoo, and leave none behind: the other backend has the same names."""
    folder = ROOT / "examples" / backend / "zoo"
    names = {path.stem for path in folder.glob("*.py")} - {"studies"}
    monkeypatch.syspath_prepend(str(folder))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def make_logits(backend, load, name, num_pixels):
    """A net with the weights that it starts from: from counts to log-probabilities of levels."""
    example = load(name)
    if backend == "pyro":
        torch = load("torch")
        torch.manual_seed(0)
        make = {
            "pixel_cnn": lambda: example.PixelCNN(HIDDEN),
            "dilated": lambda: example.DilatedNet(num_pixels, HIDDEN),
            "row_lstm": lambda: example.RowLSTMs(HIDDEN),
            "recurrent": lambda: example.PixelGRU(num_pixels, HIDDEN),
        }
        net = make[name]()

        def logits(x):
            with torch.no_grad():
                return net(torch.as_tensor(x, dtype=torch.float32)).base_dist.logits.numpy()

        return logits, net, None
    jax = load("jax")
    make = {
        "pixel_cnn": lambda: example.PixelCNN(HIDDEN),
        "dilated": lambda: example.DilatedNet(HIDDEN),
        "row_lstm": lambda: example.RowLSTMs(HIDDEN),
        "recurrent": lambda: example.PixelGRU(num_pixels, HIDDEN),
    }
    net = make[name]()
    variables = net.init(jax.random.key(0), np.zeros((1, num_pixels), np.float32))
    run = jax.jit(lambda x: jax.nn.log_softmax(net.apply(variables, x)))
    return lambda x: np.asarray(run(np.asarray(x, np.float32))), net, variables


@pytest.mark.parametrize("name", NETS)
def test_a_pixel_is_given_those_before_it_and_no_others(backend, load, name):
    num_pixels = 16
    logits, *_ = make_logits(backend, load, name, num_pixels)
    rng = np.random.default_rng(0)
    image = rng.integers(NUM_LEVELS, size=num_pixels)
    # Row i has other pixels from i on.
    changed = np.tile(image, (num_pixels, 1))
    for pixel in range(num_pixels):
        changed[pixel, pixel:] = (image[pixel:] + 5) % NUM_LEVELS
    found, as_it_was = logits(changed), logits(np.tile(image, (num_pixels, 1)))
    assert found.shape == (num_pixels, num_pixels, NUM_LEVELS)
    moved = np.abs(found - as_it_was).max(-1)
    for pixel in range(num_pixels):
        np.testing.assert_allclose(moved[pixel, : pixel + 1], 0, atol=1e-6)
        assert (moved[pixel, pixel + 1 :] > 1e-6).all()  # all later ones see that it has changed


@pytest.mark.parametrize("name", NETS)
def test_the_probabilities_of_all_images_sum_to_one(backend, load, monkeypatch, name):
    # Of 2 x 2 pixels of 3 levels there are 81.
    monkeypatch.setattr(load(name), "NUM_LEVELS", 3)
    monkeypatch.setattr(load(name), "MAX_COUNT", 0.1)  # large inputs: far from uniform
    images = np.array(list(itertools.product(range(3), repeat=4)))
    log_levels, *_ = make_logits(backend, load, name, 4)
    log_probs = (
        np.take_along_axis(log_levels(images), images[..., None], -1).astype(float).sum((1, 2))
    )
    assert logsumexp(log_probs) == pytest.approx(0.0, abs=1e-5)
    assert log_probs.std() > 0.02


@pytest.mark.parametrize("name", ["pixel_cnn", "recurrent"])
def test_draws_are_as_frequent_as_they_are_likely(backend, load, monkeypatch, name):
    # Two levels of 2 x 2 pixels: 16 images. The recurrent net draws pixel after pixel.
    monkeypatch.setattr(load(name), "NUM_LEVELS", 2)
    monkeypatch.setattr(load(name), "MAX_COUNT", 0.1)
    images = np.array(list(itertools.product(range(2), repeat=4)))
    log_levels, net, variables = make_logits(backend, load, name, 4)
    log_probs = np.take_along_axis(log_levels(images), images[..., None], -1).sum((1, 2))
    size = 2000
    if backend == "pyro":
        draw = net.sample if name == "recurrent" else partial(load("parts").draw_pixels, net)
        drawn = draw(size, 4).numpy()
    else:
        draw = load(name).draw if name == "recurrent" else load("parts").draw_pixels
        key = load("jax").random.key(3)
        drawn = np.asarray(draw(key, net, variables, size, 4))
    found = np.bincount(drawn.astype(int) @ [8, 4, 2, 1], minlength=16)
    expected = size * np.exp(log_probs.astype(float))
    assert expected.max() / expected.min() > 1.3
    assert chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4


def test_codes_bound_the_log_likelihood(backend, load, monkeypatch):
    # One place of three codes: log p(x) is a sum of three terms, of which the bound has one.
    example = load("vq_vae")
    for name, value in (("NUM_CODES", 3), ("LARGEST_GRID", 1)):
        monkeypatch.setattr(example, name, value)
    counts = np.random.default_rng(0).integers(NUM_LEVELS, size=(5, 16)).astype(np.float32)
    made = _pyro_codes if backend == "pyro" else _numpyro_codes
    bound, codes, log_prior, logits = made(example, load, counts)

    given_codes = binom.logpmf(counts[:, None], MAX_COUNT, 1 / (1 + np.exp(-logits))).sum(-1)
    terms = given_codes + log_prior
    rows = np.arange(len(counts))
    assert codes.shape == (5, 1)
    assert bound == pytest.approx(terms[rows, codes[:, 0]].mean(), rel=1e-5)
    assert bound < logsumexp(terms, axis=-1).mean()


def _pyro_codes(example, load, counts):
    torch, parts = load("torch"), load("parts")
    settings = load("studies.zoo").Settings(0, 5, 1e-2, 5)
    parts.start(settings)
    vq, prior = example.VQVAE(counts.shape[1], 4), example.Prior(4)
    svi = example.SVI(vq.model, vq.guide, parts.adam(settings), example.TraceGraph_ELBO())
    codes = vq.nearest(torch.as_tensor(counts))
    of_prior = parts.autoregressive_svi(settings, prior)
    bound = example.given_codes(vq, svi, counts)
    bound += parts.mean_bound(of_prior, codes, num_draws=1)
    with torch.no_grad():
        log_prior = prior(torch.zeros(1, 1)).base_dist.logits.reshape(-1)
        logits = vq.decoder(vq.book()[:, None])
    return bound, codes.numpy(), log_prior.double().numpy(), logits.double().numpy()


def _numpyro_codes(example, load, counts):
    jax, parts = load("jax"), load("parts")
    settings = load("studies.zoo").Settings(0, 5, 1e-2, 5, batch_size=5)
    vq, prior = example.VQVAE(jax.random.key(0), counts.shape[1], 4), example.Prior(4)
    svi = example.SVI(vq.model, vq.guide, parts.adam(settings), example.TraceGraph_ELBO())
    state = svi.init(jax.random.key(1), counts)
    params = svi.get_params(state)
    codes = np.asarray(example.handlers.substitute(vq.nearest, data=params)(counts))
    of_prior = parts.autoregressive_svi(settings, prior)
    prior_state = of_prior.init(jax.random.key(2), codes)
    bound = example.given_codes(jax.random.key(3), vq, svi, state, counts)
    bound += parts.mean_bound(jax.random.key(3), of_prior, prior_state, codes, num_draws=1)
    variables = {"params": of_prior.get_params(prior_state)["net$params"]}
    log_prior = jax.nn.log_softmax(prior.apply(variables, np.zeros((1, 1), int)).reshape(-1))
    logits = vq.decoder_net.apply({"params": params["decoder$params"]}, params["book"][:, None])
    return bound, codes, np.asarray(log_prior, float), np.asarray(logits, float)


def test_the_gradient_passes_straight_through(backend, load):
    # The decoder sees the book's vectors, and what it says of them reaches the encoder as it is,
    # beside the pull to the code; the book is pulled only.
    example = load("vq_vae")
    counts = np.random.default_rng(0).integers(NUM_LEVELS, size=(3, 64)).astype(np.float32)
    gradients = _pyro_gradients if backend == "pyro" else _numpyro_gradients
    for found, expected in gradients(example, load, counts):
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def _pyro_gradients(example, load, counts):
    torch, parts = load("torch"), load("parts")
    parts.start(load("studies.zoo").Settings(0, 5, 1e-2, 5))
    x = torch.as_tensor(counts)
    vq = example.VQVAE(x.shape[1], 4)
    example.TraceGraph_ELBO().loss_and_grads(vq.model, vq.guide, x)
    book = example.pyro.get_param_store()._params["book"]

    given = vq.encoder(x)
    vectors = book[vq.nearest(x)].detach().requires_grad_()
    pixels = example.dist.Binomial(MAX_COUNT, logits=vq.decoder(vectors)).to_event(1)
    (of_decoder,) = torch.autograd.grad(-pixels.log_prob(x).sum(), vectors)
    gap = (given - vectors).detach()
    weights = list(vq.encoder.parameters())
    expected = torch.autograd.grad(given, weights, of_decoder + 2 * example.COMMITMENT * gap)
    yield from (
        (weight.grad, wanted.numpy()) for weight, wanted in zip(weights, expected, strict=True)
    )
    of_book = torch.zeros_like(book).index_add(0, vq.nearest(x).flatten(), -2 * gap.flatten(0, 1))
    yield book.grad, of_book.detach().numpy()


def _numpyro_gradients(example, load, counts):
    jax, jnp = load("jax"), load("jax.numpy")
    vq = example.VQVAE(jax.random.key(0), counts.shape[1], 4)
    svi = example.SVI(vq.model, vq.guide, load("optax").sgd(1.0), example.TraceGraph_ELBO())
    params = svi.get_params(svi.init(jax.random.key(1), counts))
    found = jax.grad(
        lambda params: svi.loss.loss(jax.random.key(2), params, vq.model, vq.guide, counts)
    )(params)

    codes = example.handlers.substitute(vq.nearest, data=params)(counts)
    vectors, weights = params["book"][codes], params["encoder$params"]

    def of_decoder(vectors):
        logits = vq.decoder_net.apply({"params": params["decoder$params"]}, vectors)
        return -example.dist.Binomial(MAX_COUNT, logits=logits).log_prob(counts).sum()

    given, pull_back = jax.vjp(lambda w: vq.encoder_net.apply({"params": w}, counts), weights)
    gap = given - vectors
    (expected,) = pull_back(jax.grad(of_decoder)(vectors) + 2 * example.COMMITMENT * gap)
    flat = (jax.tree.leaves(tree) for tree in (found["encoder$params"], expected))
    yield from zip(*flat, strict=True)
    yield found["book"], jnp.zeros_like(params["book"]).at[codes].add(-2 * gap)
