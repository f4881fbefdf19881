# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Handlers that act inside NumPyro's scan and cond as they do outside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import Independent, MaskedDistribution
from numpyro.handlers import uncondition
from numpyro.primitives import Messenger, apply_stack

from numpyro_spread import _parents
from numpyro_spread.distributions import ImplicitDistribution
from numpyro_spread.infer._sites import is_implicit
from spread_core.messages import control_flow

# Ends the name under which an observed value leaves a body.
_OBSERVED = "$observed"
_SCANNED = "_scanned"


class Inside(Messenger):
    """
    A handler that visits every sample site before its value is drawn, wherever it stands.

    NumPyro hides the bodies of scan and cond from handlers. What they were told to substitute does
    get in, in the order of the handlers: so do visits.
    """

    def visit(self, msg: Any, inside: bool) -> None:
        """
        A sample site, after the handlers inside this one have seen it.

        :param inside: whether it is in a body, from which only arrays of the trace get out.
        """

    def leave(self, msg: Any) -> None:
        """A sample site in a body, once it has a value, before the model gets it."""

    def process_message(self, msg: Any) -> None:
        """Visit the site, or have those in a body visited."""
        if msg["type"] == "control_flow":
            if msg["fn"] not in (scan_wrapper, cond_wrapper):
                raise NotImplementedError(control_flow.unknown(msg["fn"].__name__))
            bodies = slice(0, 1) if msg["fn"] is scan_wrapper else slice(1, 3)
            args = list(msg["args"])
            is_scan = msg["fn"] is scan_wrapper
            self._plates: dict[str, Any] = {}
            args[bodies] = [self._reached(body, is_scan) for body in args[bodies]]
            msg["args"] = tuple(args)
            msg["kwargs"]["substitute_stack"].append(("substitute", self._visit_inside))
        elif msg["type"] == "sample" and not msg.get("_control_flow_done"):
            self.visit(msg, inside=False)

    def postprocess_message(self, msg: Any) -> None:
        """See to it that what comes out of a body is what the sites outside are."""
        if msg["type"] == "control_flow":
            if msg["kwargs"].get("enum"):
                raise NotImplementedError(control_flow.enumerated())
            is_scan = msg["fn"] is scan_wrapper
            traced = msg["value"][1][0] if is_scan else msg["value"][1]
            _settle(traced.trace, is_scan)
            if not msg.get("_plates_known"):
                msg["_plates_known"] = True
                for plate in self._plates.values():
                    apply_stack({**plate, "value": jnp.arange(plate["args"][0])})

    def _visit_inside(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self.visit(msg, inside=True)

    def _reached(self, body: Callable[..., Any], is_scan: bool) -> Callable[..., Any]:
        @functools.wraps(body)
        def reached(*args: Any) -> Any:
            with _Body(self, is_scan):
                return body(*args)

        return reached


class _Body(Messenger):
    """Wrap the body: raise an error for anything that would be lost in it."""

    def __init__(self, outside: Inside, is_scan: bool) -> None:
        super().__init__()
        self._outside, self._is_scan = outside, is_scan

    def process_message(self, msg: Any) -> None:
        kind = msg["type"]
        if kind in ("param", "mutable"):
            raise ValueError(control_flow.learned_inside(kind, msg["name"], self._is_scan))
        if kind == "control_flow" and self._is_scan and msg["fn"] is scan_wrapper:
            raise NotImplementedError(control_flow.nested())
        if kind == "plate":
            size, taken = msg["args"]
            if self._is_scan and taken is not None and taken < size:
                raise ValueError(control_flow.subsampled_inside(msg["name"]))
            # NumPyro does not tell of these plates outside.
            self._outside._plates[msg["name"]] = {**msg, "cond_indep_stack": []}

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._outside.leave(msg)


class Unconditioned(Inside):
    """Draws instead of observations, as by ``uncondition``; what was observed is in ``infer``."""

    def visit(self, msg: Any, inside: bool) -> None:
        if not msg["is_observed"]:
            return
        # A copy: the dict belongs to the model, which may use it for several sites.
        msg["infer"] = dict(msg["infer"])
        uncondition().process_message(msg)
        if inside:
            numpyro.deterministic(msg["name"] + _OBSERVED, msg["infer"].pop("obs"))


def is_scanned(site: Mapping[str, Any]) -> bool:
    """Whether a site of a trace comes out of a scan: time is then its leftmost batch dim."""
    return bool(site.get(_SCANNED))


def _settle(sites: dict[str, Any], is_scan: bool) -> None:
    for name in [name for name in sites if name.endswith(_OBSERVED)]:
        site, value = sites[name.removesuffix(_OBSERVED)], sites.pop(name)["value"]
        if is_scan:  # as NumPyro does it for the values of a site
            missing = len(site["fn"].shape()) - jnp.ndim(value)
            value = jnp.expand_dims(value, tuple(range(1, 1 + missing)))
        site["infer"] = {**site["infer"], "obs": value}
    for name, site in sites.items():
        if is_scan and site["type"] == "sample":
            site["fn"] = _settled(name, site["fn"])
        site[_SCANNED] = is_scan


def _settled(name: str, fn: Any) -> Any:
    """``fn`` with its batch shape, which NumPyro gets wrong in ``to_event`` of events."""
    if not isinstance(fn, Independent | MaskedDistribution):
        if is_implicit(fn) and not isinstance(fn, ImplicitDistribution):
            raise NotImplementedError(control_flow.transformed_inside(name))
        return fn
    base = _settled(name, fn.base_dist)
    batch = base.batch_shape
    if isinstance(fn, Independent):
        batch = batch[: len(batch) - fn.reinterpreted_batch_ndims]
    result: Any = _parents.with_batch_shape(fn, batch)
    result.base_dist = base
    return result
