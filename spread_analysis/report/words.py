# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the reported value of a loss means, and what its critic's logits compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spread_analysis.critic import critic_report
from spread_core.validation import FloatArray

NOT_A_BOUND = "estimate, not a bound"
# Attributes of losses that are not settings, or are shown elsewhere.
_UNTOLD = {
    "discriminator",
    "head",
    "ignore_jit_warnings",
    "max_plate_nesting",
    "multi_sample_guide",
    "name",
    "retain_graph",
    "steps_done",
    "strict_enumeration_warning",
    "tail_adaptive_beta",
    "vectorize_particles_fn",
}


@dataclass(frozen=True)
class LossWords:
    """
    Words that describe a loss.

    :param name: its class.
    :param value: what it reports.
    :param unit: of that; empty where it has none.
    :param caution: what has to be said wherever the value is shown.
    :param is_divergence: whether zero is the least it can be.
    :param sides: whose samples the critic tells apart, those with label one first.
    :param is_classifier: whether the critic's outputs are logits of a classifier.
    :param pi: weight of the first side that the critic was trained with.
    :param is_sum: whether the value is a sum over the data, in nats.
    """

    name: str
    value: str
    unit: str = "nats"
    caution: str = ""
    is_divergence: bool = False
    sides: tuple[str, str] = ("data", "model")
    is_classifier: bool = True
    pi: float = 0.5
    is_sum: bool = False

    @property
    def label(self) -> str:
        """Label of an axis: the value with its unit and a caution."""
        label = f"{self.value} ({self.unit})" if self.unit else self.value
        return f"{label}, {self.caution}" if self.caution else label


def describe(loss: Any) -> LossWords:
    """
    Describe a loss of either backend, or a stock loss.

    :param loss: the loss object.
    """
    name = type(loss).__name__
    known = {cls.__name__ for cls in type(loss).__mro__}
    if "AdversarialDivergence" in known:
        value = f"{_divergence(loss)} estimate"
        return LossWords(name, value, is_divergence=True, pi=float(loss.divergence.pi))
    if "WassersteinCritic" in known:
        return LossWords(
            name, "Wasserstein estimate", "units of x", is_divergence=True, is_classifier=False
        )
    if "PriorContrastELBO" in known:
        sides = ("guide", "contrast")
        value = "minus the adversarial ELBO"
        return LossWords(name, value, caution=NOT_A_BOUND, sides=sides, is_sum=True)
    if "JointContrastELBO" in known:
        if loss.discriminator is None:
            return LossWords(name, "minus the guide's log density at the model's latents")
        share = 1 - float(loss.divergence.pi)
        sides = ("guide's pairs", "model's pairs")
        value = f"{_divergence(loss)} of the pairs (x, z)"
        return LossWords(
            name, value, caution=NOT_A_BOUND, is_divergence=True, sides=sides, pi=share
        )
    for other, value, unit in (
        ("MMD", "MMD², unbiased", ""),
        ("EnergyDistance", "energy distance, unbiased", "units of x to the power beta"),
        ("SlicedWasserstein", "sliced Wasserstein", "units of x to the power p"),
    ):
        if other in known:
            return LossWords(name, value, unit, is_divergence=True)
    if "SpreadELBO" in known:
        return LossWords(name, "minus the ELBO of the spread data", is_sum=True)
    if "SemiImplicitELBO" in known:
        return LossWords(name, "minus the semi-implicit bound", is_sum=True)
    is_stock = type(loss).__module__.split(".")[0] in ("pyro", "numpyro")
    return LossWords(name, f"loss of {name}", is_sum=is_stock)


def _divergence(loss: Any) -> str:
    name = type(loss.divergence).__name__
    return f"JSPi({float(loss.divergence.pi):g})" if name == "JSPi" else name


@dataclass(frozen=True)
class CriticLogits:
    """
    A critic's logits for data and model, flat, with weights or None.

    :param data: of shape (num_data,); of the guide's draws where a guide is judged.
    :param model: of shape (num_model,).
    :param data_weights: of shape (num_data,), or None.
    :param model_weights: of shape (num_model,), or None.
    """

    data: FloatArray
    model: FloatArray
    data_weights: FloatArray | None = None
    model_weights: FloatArray | None = None

    @classmethod
    def of(cls, logits: Any) -> CriticLogits:
        """Convert the named tuple that ``loss.logits`` of either backend returns."""
        data, model = as_array(logits.data), as_array(logits.model)
        weights = [
            None if weight is None else np.broadcast_to(as_array(weight), side.shape).ravel()
            for weight, side in ((logits.data_weights, data), (logits.model_weights, model))
        ]
        return cls(data.ravel(), model.ravel(), *weights)

    @property
    def num_not_finite(self) -> int:
        """How many logits are NaN or infinite."""
        return int((~np.isfinite(self.data)).sum() + (~np.isfinite(self.model)).sum())


def as_array(value: Any) -> FloatArray:
    """An array or tensor of either backend in double precision."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value, np.float64)


def figures_of(
    words: LossWords, value: float, logits: Mapping[str, CriticLogits]
) -> dict[str, float]:
    r"""
    The numbers to watch during training.

    :param words: about the loss.
    :param value: what it reports.
    :param logits: critics' logits by critic; the name of a single one is empty.
    :return: ``loss``; ``divergence``, the same, where the loss is one; and for every critic that
        is a classifier ``critic_accuracy``, ``critic_divergence`` (its own estimate of
        :math:`JS_\pi` in nats, H(pi) less its cross-entropy), ``critic_saturated`` (share of
        logits of at least 10 in size) and ``log_ratio_gap`` (how many nats the mean log-ratio
        falls from one side to the other), with "/site" behind where there is one critic per site.
        All are NaN where logits are.
    """
    numbers = {"loss": value}
    if words.is_divergence:
        numbers["divergence"] = value
    if not words.is_classifier:
        return numbers
    for name, both in logits.items():
        ending = f"/{name}" if name else ""
        found = dict.fromkeys(("accuracy", "divergence", "saturated"), np.nan)
        gap = np.nan
        if not both.num_not_finite:
            checked = critic_report(
                both.data, both.model, words.pi, 10, both.data_weights, both.model_weights
            )
            found = {key: float(getattr(checked, key)) for key in found}
            gap = _mean(both.data, both.data_weights) - _mean(both.model, both.model_weights)
        numbers |= {f"critic_{key}{ending}": number for key, number in found.items()}
        numbers[f"log_ratio_gap{ending}"] = float(gap)
    return numbers


def _mean(values: FloatArray, weights: FloatArray | None) -> float:
    return float(np.average(values, weights=weights))


def describe_settings(loss: Any) -> dict[str, str]:
    """
    The arguments of a loss, as text by name of the argument.

    :param loss: the loss object.
    """
    settings = {"loss": type(loss).__name__}
    for name, value in vars(loss).items():
        if name.startswith("_") or name in _UNTOLD or value is None:
            continue
        if isinstance(value, Mapping):
            if not value:
                continue
            settings[name] = ", ".join(f"{key}: {shorten(item)}" for key, item in value.items())
        elif name in ("elbo", "regularizer"):
            settings[name] = type(value).__name__
        else:
            settings[name] = shorten(value)
    return settings


def shorten(value: Any, limit: int = 160) -> str:
    """The repr of a setting, without what changes from run to run, and not too long."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"function {value.__qualname__}"
    text = str(value) if isinstance(value, str) else repr(value)
    if " object at 0x" in text:
        inside = {k: v for k, v in getattr(value, "__dict__", {}).items() if k[:1] != "_"}
        told = ", ".join(f"{key}={item!r}" for key, item in inside.items())
        text = f"{type(value).__name__}({told})" if " object at 0x" not in told else ""
        text = text or type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
