"""A user's Julia function on the Julia side: its source, and the memory of the parameters it sees."""

from __future__ import annotations

from ctypes import byref, c_int64
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyjode.engines.julia.boundary import SourceArgs, gate
from pyjode.engines.julia.callbacks import parameter_gradients

if TYPE_CHECKING:
    from pyjode.julia_function import JuliaRHS


class SourceFunction:
    """Julia source bound to the parameters of one solve. Interface of
    :class:`~pyjode.engines.julia.callbacks.Callbacks`.
    """

    calls_python = False
    _entry = "source_rhs"

    def __init__(self, rhs: JuliaRHS, params: tuple[Tensor, ...], sign: int, with_jac: bool):
        layout, source = rhs.layout, rhs.source
        self._rhs = rhs
        self._memory = torch.zeros(sum(x.numel() for x in rhs.leaves), dtype=layout.dtype)
        self._version = torch.zeros(1, dtype=torch.int64)
        self.params = params
        self.n_params = sum(p.numel() for p in params)
        places, at = {}, 0
        for p in rhs.params:
            places[id(p)] = at
            at += p.numel()
        leaves = [x for leaf in rhs.leaves for x in (leaf.ndim, *leaf.shape, places.get(id(leaf), -1))]
        dims, table = torch.tensor([*rhs.seen_shape, 0]), torch.tensor([*leaves, 0])
        rows = rhs.batch_size or 1
        args = SourceArgs(
            double=int(layout.dtype == torch.float64),
            n=layout.n,
            np=at,
            sign=sign,
            blocks=rows if with_jac else 1,
            rows=rows,
            ndims=len(rhs.seen_shape),
            dims=dims.data_ptr(),
            nleaves=len(rhs.leaves),
            leaves=table.data_ptr(),
            values=self._memory.data_ptr(),
            version=self._version.data_ptr(),
        )
        texts = (source.text, source.vjp or "", source.jac or "", source.structure)
        handle = c_int64()
        gate().construct("ForwardDiff", "nothing")
        gate().call(self._entry, byref(args), *(text.encode() for text in texts), byref(handle))
        self.handle = handle.value

    @property
    def params(self) -> tuple[Tensor, ...]:
        """Values of ``rhs.params`` that calls use."""
        return self._params

    @params.setter
    def params(self, params: tuple[Tensor, ...]) -> None:
        self._params = params
        given = dict(zip(map(id, self._rhs.params), params, strict=True))
        at = 0
        with torch.no_grad():
            for leaf in self._rhs.leaves:
                self._memory[at : at + leaf.numel()].copy_(given.get(id(leaf), leaf).reshape(-1))
                at += leaf.numel()
        # Julia looks at this number before it uses its copies.
        self._version += 1

    def parameter_gradients(self, flat: Tensor) -> list[Tensor]:
        """See :func:`pyjode.engines.julia.callbacks.parameter_gradients`."""
        return parameter_gradients(flat, self._params)

    def call(
        self, what: int, out: Tensor, t: Tensor, u: Tensor, v: Tensor | None = None, by_p: Tensor | None = None
    ) -> None:
        """One call outside of a solve, into ``out`` (and ``by_p``): contiguous vectors of the state's dtype."""
        address = {name: 0 if x is None else x.data_ptr() for name, x in (("v", v), ("by_p", by_p))}
        gate().call(
            "call_rhs", self.handle, what, out.data_ptr(), address["by_p"], address["v"], u.data_ptr(), float(t)
        )


class SourcePool(SourceFunction):
    """The same for as many threads as will ask, each with arrays of its own."""

    _entry = "source_pool"
