# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The rows of the zoo, their settings and their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from studies.zoo import messages

#: What the log-likelihood of a row is: of the whole-number pixels, exact or a lower bound; or a
#: lower bound on images with spread noise, which compares with nothing else. None: there is none.
Measure = Literal["exact", "bound", "spread"]

_SMOKE_STEPS = 6


@dataclass(frozen=True)
class Row:
    """
    A row of the table: one system, trained in one way. Both backends take it from here.

    :param name: what it is called on the command line.
    :param system: the file that trains it, ``examples/{pyro,numpyro}/zoo/<system>.py``.
    :param title: what it is called in the table.
    :param measure: what its log-likelihood is.
    :param loss: the loss that is passed to SVI.
    :param num_steps: gradient steps of the model.
    :param learning_rate: of Adam.
    """

    name: str
    system: str
    title: str
    measure: Measure | None
    loss: str
    num_steps: int
    learning_rate: float

    @property
    def num_seeds(self) -> int:
        """Runs, unless told otherwise: what comes of a game with a critic varies with the seed."""
        return 3 if self.system in _GAMES else 1

    @property
    def paper(self) -> str:
        """Where the system comes from."""
        return _PAPERS[self.system]


class Settings(NamedTuple):
    """
    Settings of a run, for ``train``.

    :param seed: of everything that is drawn.
    :param num_steps: gradient steps of the model.
    :param learning_rate: of Adam, at first.
    :param num_samples: how many images to draw in the end.
    :param batch_size: images per step.
    :param latent_dim: size of z in all systems with a generator.
    :param hidden_dim: width of the two hidden layers of all nets.
    :param noise_scale: of the spread noise, on pixels in [0, 1].
    :param num_weights: importance weights per held-out image.
    :param num_levels: noise levels of the diffusion model.
    """

    seed: int
    num_steps: int
    learning_rate: float
    num_samples: int
    batch_size: int = 128
    latent_dim: int = 16
    hidden_dim: int = 128
    noise_scale: float = 0.2
    num_weights: int = 200
    num_levels: int = 100


class Trained(NamedTuple):
    """
    One trained system, as arrays.

    :param samples: images that it draws, pixels in [0, 1], shape (settings.num_samples,
        number of pixels).
    :param seconds: wall time of training, compilation included, evaluation not.
    :param log_likelihood: mean over held-out images, nats per image; what it is, exact or a bound,
        ``Row.measure`` says. None if the row has none.
    :param importance_weighted: the tighter bound with ``settings.num_weights`` draws, in the same
        unit; None where it is not taken.
    """

    samples: npt.NDArray[Any]
    seconds: float
    log_likelihood: float | None = None
    importance_weighted: float | None = None


# Of each system, where it comes from.
_PAPERS = {
    "coin": "Fisher 1922, Phil. Trans. R. Soc. A 222",
    "conditional": "Fisher 1922, Phil. Trans. R. Soc. A 222",
    "autoregressive": "Frey, Hinton, Dayan 1996, NeurIPS 8; Germain et al. 2015, ICML, "
    "arXiv:1502.03509",
    "recurrent": "Cho et al. 2014, EMNLP, arXiv:1406.1078; van den Oord et al. 2016, ICML, "
    "arXiv:1601.06759",
    "pixel_cnn": "van den Oord, Kalchbrenner, Kavukcuoglu 2016, ICML, arXiv:1601.06759",
    "dilated": "van den Oord et al. 2016, arXiv:1609.03499",
    "row_lstm": "van den Oord, Kalchbrenner, Kavukcuoglu 2016, ICML, arXiv:1601.06759",
    "real_nvp": "Dinh, Sohl-Dickstein, Bengio 2017, ICLR, arXiv:1605.08803; Theis, van den Oord, "
    "Bethge 2016, ICLR, arXiv:1511.01844",
    "vae": "Kingma, Welling 2014, ICLR, arXiv:1312.6114",
    "vq_vae": "van den Oord, Vinyals, Kavukcuoglu 2017, NeurIPS 30, arXiv:1711.00937",
    "conditional_vae": "Sohn, Lee, Yan 2015, NeurIPS 28",
    "gan": "Goodfellow et al. 2014, NeurIPS, arXiv:1406.2661",
    "unrolled_gan": "Metz, Poole, Pfau, Sohl-Dickstein 2017, ICLR, arXiv:1611.02163",
    "wasserstein_gan": "Arjovsky, Chintala, Bottou 2017, ICML, arXiv:1701.07875; Gulrajani et al. "
    "2017, NeurIPS, arXiv:1704.00028",
    "mmd_network": "Li, Swersky, Zemel 2015, ICML, arXiv:1502.02761; Dziugaite, Roy, Ghahramani "
    "2015, UAI, arXiv:1505.03906",
    "delta_vae": "Zhang et al. 2020, ICML, arXiv:1811.08968",
    "deterministic_ica": "Zhang et al. 2020, ICML, arXiv:1811.08968",
    "js_pi": "Huszár 2015, arXiv:1511.05101",
    "avb": "Mescheder, Nowozin, Geiger 2017, ICML, arXiv:1701.04722",
    "ali": "Dumoulin et al. 2017, ICLR, arXiv:1606.00704; Donahue et al. 2017, ICLR, "
    "arXiv:1605.09782",
    "lfvi": "Tran, Ranganath, Blei 2017, NeurIPS, arXiv:1702.08896; Huszár 2017, arXiv:1702.08235",
    "diffusion": "Sohl-Dickstein et al. 2015, ICML, arXiv:1503.03585; Ho, Jain, Abbeel 2020, "
    "NeurIPS, arXiv:2006.11239; Kingma et al. 2021, NeurIPS, arXiv:2107.00630",
}
_GAMES = {"gan", "unrolled_gan", "wasserstein_gan", "js_pi", "avb", "ali", "lfvi"}
# Larger images take wider nets, and more noise to hide as much.
_OF_DATASET: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist": {"hidden_dim": 256, "noise_scale": 0.3},
    "fashion-mnist": {"hidden_dim": 256, "noise_scale": 0.3},
}
_JS_NS = "AdversarialDivergence(JSPi(.5), generator='non_saturating')"


def _adversarial(name: str, system: str, title: str, loss: str) -> Row:
    return Row(name, system, title, None, loss, 5000, 5e-4)


def _delta_vae(name: str, title: str) -> Row:
    return Row(name, "delta_vae", title, "spread", "SpreadELBO", 8000, 2e-3)


#: All rows, in the order of the table.
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("coin", "coin", "coin", "exact", "Trace_ELBO", 600, 0.1),
        Row("conditional", "conditional", "conditional coin", "exact", "Trace_ELBO", 600, 0.1),
        Row(
            "fvsbn", "autoregressive", "fully visible belief net", "exact", "Trace_ELBO", 4000, 3e-3
        ),
        Row("made", "autoregressive", "MADE", "exact", "Trace_ELBO", 2000, 1e-3),
        Row("recurrent", "recurrent", "recurrent (GRU)", "exact", "Trace_ELBO", 800, 3e-3),
        Row("pixel-cnn", "pixel_cnn", "PixelCNN", "exact", "Trace_ELBO", 1500, 2e-3),
        Row("dilated", "dilated", "dilated convolutions", "exact", "Trace_ELBO", 1500, 2e-3),
        Row("row-lstm", "row_lstm", "Row LSTM", "exact", "Trace_ELBO", 1500, 2e-3),
        Row("real-nvp", "real_nvp", "Real NVP", "bound", "Trace_ELBO", 2500, 1e-3),
        Row("vae", "vae", "VAE", "bound", "Trace_ELBO", 8000, 2e-3),
        Row(
            "conditional-vae",
            "conditional_vae",
            "conditional VAE",
            "bound",
            "Trace_ELBO",
            8000,
            2e-3,
        ),
        Row("vq-vae", "vq_vae", "VQ-VAE", "bound", "TraceGraph_ELBO", 2500, 2e-3),
        _adversarial("gan-saturating", "gan", "GAN, saturating", "AdversarialDivergence(JSPi(.5))"),
        _adversarial("gan-non-saturating", "gan", "GAN, non-saturating", _JS_NS),
        _adversarial("gan-k-steps", "gan", "GAN, 3 critic steps", _JS_NS),
        _adversarial(
            "gan-unrolled",
            "unrolled_gan",
            "GAN, unrolled",
            "AdversarialDivergence(JSPi(.5), unroll=5)",
        ),
        _adversarial("wasserstein-gan", "wasserstein_gan", "Wasserstein GAN", "WassersteinCritic"),
        _adversarial("mmd-network", "mmd_network", "MMD network", "MMD"),
        _delta_vae("delta-vae-gaussian", "delta-VAE, Gaussian noise"),
        _delta_vae("delta-vae-laplace", "delta-VAE, Laplace noise"),
        _delta_vae("delta-vae-low-rank", "delta-VAE, low-rank noise"),
        _delta_vae("delta-vae-learned", "delta-VAE, learned noise"),
        Row(
            "deterministic-ica",
            "deterministic_ica",
            "deterministic ICA",
            "spread",
            "SpreadELBO",
            5000,
            2e-3,
        ),
        _adversarial("js-pi-0.1", "js_pi", "JS_pi, pi = .1", "AdversarialDivergence(JSPi(.1))"),
        _adversarial("js-pi-0.5", "js_pi", "JS_pi, pi = .5", "AdversarialDivergence(JSPi(.5))"),
        _adversarial("js-pi-0.9", "js_pi", "JS_pi, pi = .9", "AdversarialDivergence(JSPi(.9))"),
        Row("avb", "avb", "AVB", "bound", "PriorContrastELBO", 8000, 2e-3),
        Row("ali", "ali", "ALI / BiGAN", None, "JointContrastELBO(JSPi(.5))", 3000, 5e-4),
        Row("lfvi", "lfvi", "LFVI", None, "JointContrastELBO(ReverseKL())", 3000, 5e-4),
        Row(
            "diffusion",
            "diffusion",
            "denoising diffusion",
            "bound",
            "TraceMeanField_ELBO",
            5000,
            2e-3,
        ),
    )
}
#: The files under ``examples/{pyro,numpyro}/zoo/``, in the order of the table.
SYSTEMS = tuple(dict.fromkeys(row.system for row in ROWS.values()))


def settings_for(
    row: Row,
    seed: int,
    num_samples: int,
    smoke_test: bool = False,
    num_steps: int | None = None,
    dataset: str = "digits",
) -> Settings:
    """
    Settings of a row, for ``train``.

    :param row: the row.
    :param seed: of the run.
    :param num_samples: images to draw in the end.
    :param smoke_test: tiny, but through every line; the coin, which is checked against its closed
        form, takes all its steps.
    :param num_steps: instead of those of the row.
    :param dataset: name of the data set.
    """
    if smoke_test and num_steps is None and row.name != "coin":
        num_steps = _SMOKE_STEPS
    steps = row.num_steps if num_steps is None else num_steps
    settings = Settings(seed, steps, row.learning_rate, num_samples, **_OF_DATASET[dataset])
    if smoke_test:
        settings = settings._replace(
            batch_size=32, latent_dim=4, hidden_dim=16, num_weights=3, num_levels=5
        )
    return settings


def check_trained(row: Row, trained: Trained, num_samples: int, num_pixels: int) -> None:
    """
    Refuse what a backend has got wrong, before it becomes a number in a table.

    :param row: the row.
    :param trained: what came of it.
    :param num_samples: images that were asked for.
    :param num_pixels: pixels of an image.
    :raises ValueError: if samples are not the images asked for, or a log-likelihood is there where
        the row has none, or missing where it has one.
    """
    samples = np.asarray(trained.samples)
    if samples.shape != (num_samples, num_pixels):
        raise ValueError(messages.samples_shape(row.name, samples.shape, (num_samples, num_pixels)))
    # Samples that are not finite are not an error of the program: the table shows that they failed.
    if np.isfinite(samples).all() and (samples.min() < 0 or samples.max() > 1):
        raise ValueError(messages.samples_range(row.name, samples.min(), samples.max()))
    if (trained.log_likelihood is None) != (row.measure is None):
        raise ValueError(
            messages.misplaced_log_likelihood(row.name, trained.log_likelihood, row.measure)
        )
