"""A torch right-hand side as functions of no arguments that Julia calls, with a mailbox for what goes across."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char, c_int64, c_uint64
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from pyjode.engines.julia.boundary import RHSArgs, gate
from pyjode.rhs.interface import RightHandSide

_VIEWS_KEPT = 64
_PLAIN = (Tensor, torch.nn.Parameter)


def parameter_gradients(flat: Tensor, params: tuple[Tensor, ...]) -> list[Tensor]:
    """A flat gradient (as Julia computes it) as tensors of the parameters' shapes, dtypes and devices."""
    return [part.to(p) for part, p in zip(shaped_like(flat, params), params, strict=True)]


def reals(params: tuple[Tensor, ...]) -> list[int]:
    """How many real numbers each is; two for a complex one."""
    return [2 * p.numel() if p.is_complex() else p.numel() for p in params]


def shaped_like(flat: Tensor, params: tuple[Tensor, ...]) -> list[Tensor]:
    """Views of a vector of reals, each of a parameter's shape; complex where it is."""
    if all(type(p) in _PLAIN and not p.is_complex() for p in params):
        return list(_unflatten_dense_tensors(flat, params))  # all at once, in C++
    return [
        torch.view_as_complex(part.view(*p.shape, 2)) if p.is_complex() else part.view(p.shape)
        for part, p in zip(flat.split(reals(params)), params, strict=True)
    ]


class Callbacks:
    """The Python side of one right-hand side that Julia calls back.

    Julia writes the addresses of u and v into the mailbox and t into a tensor of no dimensions; each function returns
    the address of its result, which is kept alive until its next call. Julia's vectors are seen in place: no copy.

    Attributes:
        params: values of ``rhs.params`` that calls use; replaced before a backward pass.
        handle: Julia's number for it.
    """

    calls_python = True

    def __init__(self, rhs: RightHandSide, params: tuple[Tensor, ...], sign: int, with_jac: bool):
        layout = rhs.layout
        self.params = params
        self._slots = (c_uint64 * 4)()
        self._t = torch.zeros((), dtype=layout.dtype)
        self.n_params = sum(reals(params))
        self._flat_p = torch.zeros(self.n_params, dtype=layout.dtype)
        self._p_parts = shaped_like(self._flat_p, params)
        blocks = (rhs.batch_size or 1) if with_jac else 1
        # Held here because Julia has only their addresses.
        self._functions = self._make_functions(rhs, blocks) if with_jac else self._make_functions(rhs, None)
        args = RHSArgs(
            double=int(layout.dtype == torch.float64),
            n=layout.n,
            np=self._flat_p.numel(),
            sign=sign,
            blocks=blocks,
            slots=ctypes.addressof(self._slots),
            t=self._t.data_ptr(),
            **{name: id(function) for name, function in self._functions.items()},
        )
        handle = c_int64()
        gate().call("rhs", byref(args), byref(handle))
        self.handle = handle.value

    def parameter_gradients(self, flat: Tensor) -> list[Tensor]:
        """See :func:`parameter_gradients`."""
        return parameter_gradients(flat, self.params)

    def _make_functions(self, rhs: RightHandSide, blocks: int | None) -> dict[str, Callable[[], int]]:
        # Everything is a local of this closure: attribute look-ups would be a tenth of the cost of a small call.
        slots, t, flat_p, p_parts = self._slots, self._t, self._flat_p, self._p_parts
        n, dtype = rhs.layout.n, rhs.layout.dtype
        memory = c_char * (n * dtype.itemsize)
        views: dict[int, Tensor] = {}
        kept: list[Any] = [None] * 4
        rhs_f, rhs_vjp_u, rhs_vjp_p, rhs_vjp_up = rhs.f, rhs.vjp_u, rhs.vjp_p, rhs.vjp_up

        def view(address: int) -> Tensor:
            # The solver works in a handful of vectors: their views are made once.
            tensor = views.get(address)
            if tensor is None:
                if len(views) >= _VIEWS_KEPT:
                    views.clear()
                tensor = torch.frombuffer(memory.from_address(address), dtype=dtype, count=n)
                views[address] = tensor
            return tensor

        def f() -> int:
            kept[0] = out = rhs_f(t, view(slots[0]), self.params)
            return out.data_ptr()

        def vjp_u() -> int:
            kept[1] = out = rhs_vjp_u(t, view(slots[0]), view(slots[1]), self.params)
            return out.data_ptr()

        def vjp_p() -> int:
            torch._foreach_copy_(p_parts, rhs_vjp_p(t, view(slots[0]), view(slots[1]), self.params))
            return flat_p.data_ptr()

        def vjp_up() -> int:
            out, by_p = rhs_vjp_up(t, view(slots[0]), view(slots[1]), self.params)
            kept[2] = out
            torch._foreach_copy_(p_parts, by_p)
            slots[2] = out.data_ptr()
            slots[3] = flat_p.data_ptr()
            return 1

        functions: dict[str, Callable[[], int]] = {"f": f, "vjp_u": vjp_u, "vjp_p": vjp_p, "vjp_up": vjp_up}
        if blocks is None:
            return functions
        rhs_jacobian = rhs.jacobian if blocks == 1 else rhs.jacobian_blocks
        zero = torch.zeros(n, dtype=dtype)

        def jac() -> int:
            kept[3] = out = rhs_jacobian(t, view(slots[0]), self.params).contiguous()
            return out.data_ptr()

        def tgrad() -> int:
            kept[3] = out = rhs.time_gradient(t, view(slots[0]), self.params) if rhs.depends_on_time else zero
            return out.data_ptr()

        return functions | {"jac": jac, "tgrad": tgrad}
