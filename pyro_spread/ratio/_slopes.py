# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find which logits depend on which samples: from the graph of autograd, or by derivatives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

# Operations by the names of their nodes, without the numbers at the end.
_ELEMENTWISE = {
    "Abs", "Add", "Alias", "Atan", "Celu", "Clamp", "Clone", "Cos", "Div", "Elu", "Erf", "Exp",
    "Expm1", "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Log1P",
    "LogSigmoid", "Maximum", "Minimum", "Mish", "Mul", "NativeDropout", "Neg", "Pow", "Reciprocal",
    "Relu", "Rsqrt", "Rsub", "Sigmoid", "Silu", "Sin", "Softplus", "Sqrt", "Sub", "Tanh",
    "Threshold", "ToCopy", "Where",
}  # fmt: skip
_SAME_ORDER = {"Unsqueeze", "UnsafeView", "View", "ReshapeAlias", "Squeeze", "Slice"}
_OVER_DIMS = {
    "Amax", "Amin", "Cat", "LinalgVectorNorm", "LogSoftmax", "Logsumexp", "Max", "Mean", "Min",
    "Select", "Softmax", "Sum",
}  # fmt: skip
_IMAGES = {
    "AdaptiveAvgPool2D", "AvgPool2D", "Convolution", "MaxPool2DWithIndices", "NativeGroupNorm",
}  # fmt: skip


def are_apart(
    logits: torch.Tensor, inputs: Sequence[torch.Tensor], batch_shape: torch.Size
) -> bool:
    """
    Whether the graph of ``logits`` proves that every logit depends on its own sample alone.

    Every node between them must be known to keep samples apart, and its result must still begin
    with the batch. Branches not taken at these values are no part of the graph.

    :param logits: of the batch shape.
    :param inputs: each of shape batch_shape + rest.
    :param batch_shape: dims that count the samples.
    """
    ends = {_node_of(value) for value in inputs if value.requires_grad}
    if batch_shape.numel() < 2 or not ends or logits.grad_fn is None:
        return True
    nodes = _in_order(logits.grad_fn, ends)
    between: set[Any] = set(ends)
    for node in nodes:  # after all that it was computed from
        if node not in ends and any(parent in between for parent, _ in node.next_functions):
            between.add(node)
    return all(node in ends or _keeps_apart(node, between, batch_shape) for node in between)


def others_move(logits: torch.Tensor, inputs: Sequence[torch.Tensor]) -> bool | None:
    """
    Whether some logit depends on another sample at these values; None where derivatives are NaN.

    Any two samples differ in some bit of their numbers: bit by bit, half of the logits are
    differentiated, and the samples of the other half looked at.

    :param logits: of the batch shape.
    :param inputs: each of shape batch_shape + rest.
    """
    learned = [value for value in inputs if value.requires_grad]
    if not logits.requires_grad or not learned:
        return False
    count = logits.numel()
    index = torch.arange(count, device=logits.device)
    for bit in range((count - 1).bit_length()):
        for side in (0, 1):
            asked = (index >> bit) & 1 == side
            # Unequal numbers, so that no slopes cancel.
            pull = torch.where(asked, 1 + (index * 0.618) % 1, 0.0).to(logits)
            grads = torch.autograd.grad(
                logits, learned, pull.reshape(logits.shape), retain_graph=True, allow_unused=True
            )
            for grad in grads:
                if grad is None:
                    continue
                if not bool(torch.isfinite(grad).all()):
                    return None
                if bool(grad.reshape(count, -1)[~asked].any()):
                    return True
    return False


def _node_of(value: torch.Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(value).node


def _in_order(start: Any, ends: set[Any]) -> list[Any]:
    """All nodes up to ``ends``, each after those that it was computed from."""
    done, order, left = set(), [], [(start, False)]
    while left:
        node, expanded = left.pop()
        if expanded:
            order.append(node)
        elif node is not None and node not in done:
            done.add(node)
            left.append((node, True))
            if node not in ends:
                left += [(parent, False) for parent, _ in node.next_functions]
    return order


def _keeps_apart(node: Any, between: set[Any], batch: torch.Size) -> bool:
    named = re.fullmatch(r"(\w+)Backward\d+", node.name())
    rule = _RULES.get(named[1]) if named else None
    shape = _shape(node, 0)
    lead = _lead(shape, batch)
    if rule is None or not lead:
        return False
    for position, (parent, number) in enumerate(node.next_functions):
        if parent in between:
            before = _shape(parent, number)
            own = _lead(before, batch)
            if not own or not rule(node, position, before, own, shape, lead):
                return False
    return True


def _shape(node: Any, number: int) -> tuple[int, ...]:
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    try:
        return tuple(node._input_metadata[number].shape)
    except (AttributeError, IndexError):
        return ()


def _lead(shape: tuple[int, ...], batch: torch.Size) -> int:
    """How many dims count the samples: those of the batch, or one for all; 0 if none do."""
    if shape[: len(batch)] == tuple(batch):
        return len(batch)
    return 1 if shape[:1] == (math.prod(batch),) else 0


def _dims(node: Any, ndim: int) -> Iterator[int]:
    dims = getattr(node, "_saved_dim", ())  # without, it goes over all
    for dim in dims if isinstance(dims, tuple) else (dims,):
        yield (dim - 2**64 if dim >= 2**63 else dim) % max(1, ndim)


# Rules take a node, which of its arguments, that one's shape and number of batch dims, and both of
# its result.
_Rule = Callable[[Any, int, tuple[int, ...], int, tuple[int, ...], int], bool]


def _elementwise(node: Any, _: int, before: Any, own: int, shape: Any, lead: int) -> bool:
    # Aligned from the right: with fewer dims, the batch would meet other dims of the result.
    return len(before) == len(shape) and own == lead


def _same_order(*_: Any) -> bool:
    return True  # each sample remains one block as long as the result begins with the batch


def _over_dims(node: Any, _: int, before: Any, own: int, shape: Any, lead: int) -> bool:
    dims = list(_dims(node, len(before)))
    return own == lead and bool(dims) and min(dims) >= own


def _product(position: int) -> _Rule:
    def rule(node: Any, at: int, before: Any, own: int, shape: Any, lead: int) -> bool:
        return at == position and own == lead == 1 and len(before) == 2

    return rule


def _batched_product(node: Any, _: int, before: Any, own: int, shape: Any, lead: int) -> bool:
    return own == lead == 1


def _image(node: Any, at: int, before: Any, own: int, shape: Any, lead: int) -> bool:
    return at == 0 and own == lead == 1 and len(before) >= 2


def _layer_norm(node: Any, at: int, before: Any, own: int, shape: Any, lead: int) -> bool:
    return at == 0 and len(before) - len(node._saved_normalized_shape) >= own


def _batch_norm(node: Any, at: int, *_: Any) -> bool:
    return at == 0 and node._saved_training is False


def _permuted(node: Any, _: int, before: Any, own: int, shape: Any, lead: int) -> bool:
    dims = [dim - 2**64 if dim >= 2**63 else dim for dim in node._saved_dims]
    return [dim % len(dims) for dim in dims[:own]] == list(range(own))


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SAME_ORDER, _same_order),
    **dict.fromkeys(_OVER_DIMS, _over_dims),
    **dict.fromkeys(_IMAGES, _image),
    "Addmm": _product(1),
    "Mm": _product(0),
    "Mv": _product(0),
    "Bmm": _batched_product,
    "NativeLayerNorm": _layer_norm,
    "NativeBatchNorm": _batch_norm,
    "CudnnBatchNorm": _batch_norm,
    "Permute": _permuted,
}
