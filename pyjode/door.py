"""What every public solve does first: it meets torch's modes and transforms, and leaves them outside.

A solve runs a program (accepted and rejected steps, in another language) that depends on values. torch.compile breaks
its graph here; autocast and inference mode end here; tracers and functorch transforms, which cannot see through, are
refused rather than answered with constants or missing gradients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyjode.errors import UnsupportedError

P = ParamSpec("P")
R = TypeVar("R")
_HALF = (torch.float16, torch.bfloat16)
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # from torch 2.6 on
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def door(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with torch's modes left outside.

    - torch.compile: a graph break; the solve runs as it would without.
    - autocast: off inside, for a step size control at rtol = 1e-6 cannot see through half precision. States that
      autocast made float16 or bfloat16 are solved as float32 (as ``torch.amp.custom_fwd(cast_inputs=torch.float32)``
      does).
    - inference mode: the solve runs under ``no_grad`` instead, so that nothing it keeps for later is an inference
      tensor.

    Raises:
        UnsupportedError: inside torch.func's transforms, torch.jit.trace, torch.export or make_fx.
    """

    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _refuse_transforms()
        autocast = autocast_devices()
        if not autocast and not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with _outside(autocast):
            if autocast:
                call = signature.bind(*args, **kwargs)
                call.arguments |= {n: _full_precision(x) for n, x in call.arguments.items() if n in ("y0", "problem")}
                return function(*call.args, **call.kwargs)
            return function(*args, **kwargs)

    # Lazy: torch's compiler takes a second to load.
    uncompiled = torch._disable_dynamo(run)

    @functools.wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return uncompiled(*args, **kwargs)
        return run(*args, **kwargs)

    return enter


def autocast_devices() -> tuple[str, ...]:
    """Device types on which autocast is on in this thread."""
    return tuple(kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, a backward pass for example, with autocast off inside."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = autocast_devices()
        if not devices:
            return function(*args, **kwargs)
        with _no_autocast(devices):
            return function(*args, **kwargs)

    return run


def refuse_forward_mode() -> None:
    """
    Raises:
        UnsupportedError: a level of forward-mode differentiation is open, whose tangents a solve would lose.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        raise UnsupportedError(
            "forward-mode derivatives (torch.autograd.forward_ad) do not go through a solve; "
            "use reverse mode: torch.autograd.grad or torch.autograd.functional.jacobian"
        )


def refuse_batched_backward(cotangents: Tensor) -> None:
    """
    Raises:
        UnsupportedError: in a backward pass under vmap (``is_grads_batched=True``, ``vectorize=True``).
    """
    try:
        cotangents.data_ptr()  # batched tensors, of either kind that torch has, have none
    except RuntimeError as error:
        raise UnsupportedError(
            "a vectorised backward pass (is_grads_batched=True, jacobian(vectorize=True)) does not go through a "
            "solve; leave that option out"
        ) from error


def refuse_second_derivative() -> None:
    """
    Raises:
        UnsupportedError: in a backward pass with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "second derivatives (create_graph=True) do not go through this adjoint; "
            'odeint(..., engine="torchdiffeq") has them, by backpropagation through its steps'
        )


class FirstDerivativeOnly(torch.autograd.Function):
    """Its argument, refusing a backward pass with ``create_graph=True``: for adjoints that would drop the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        refuse_second_derivative()
        return cotangent


def _refuse_transforms() -> None:
    if torch._C._are_functorch_transforms_active():
        raise UnsupportedError(
            "a solve inside a torch.func transform (vmap, grad, vjp, jvp, jacrev, ...) is not available. For vmap, "
            "pass the whole batch as y0 (rows of y0 are solved together); for derivatives, use torch.autograd.grad or "
            "torch.autograd.functional.jacobian"
        )
    # A tracer would record the result of this one solve as a constant.
    if torch.jit.is_tracing() or _is_exporting() or torch._C._get_dispatch_mode(_PROXY) is not None:
        raise UnsupportedError(
            "a solve cannot be traced (torch.jit.trace, torch.export, make_fx): the steps it takes depend on values; "
            "use torch.compile, which leaves it as it is"
        )


@contextlib.contextmanager
def _outside(devices: tuple[str, ...]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            # Leaving inference mode switches gradients on.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        stack.enter_context(_no_autocast(devices))
        yield


@contextlib.contextmanager
def _no_autocast(devices: tuple[str, ...]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _full_precision(x: Any) -> Any:
    from pyjode.solve import ODEProblem

    if isinstance(x, ODEProblem):
        return dataclasses.replace(x, y0=_full_precision(x.y0))
    return pytree.tree_map_only(Tensor, lambda y: y.float() if y.dtype in _HALF else y, x)
