"""A native right-hand side on the Julia side: generated code and a table of addresses it reads."""

from __future__ import annotations

import itertools
import operator
import weakref
from ctypes import byref, c_int64

import torch
from torch import Tensor

from pyjode.engines.julia.boundary import NativeArgs, gate
from pyjode.engines.julia.callbacks import parameter_gradients
from pyjode.rhs.lower import NativeSource
from pyjode.rhs.native import NativeRHS

_DATA_PTR = operator.methodcaller("data_ptr")
_IS_CONTIGUOUS = operator.methodcaller("is_contiguous")


class NativeFunction:
    """Generated Julia code bound to the memory of one solve's parameters. Interface of
    :class:`~pyjode.engines.julia.callbacks.Callbacks`.
    """

    calls_python = False
    _entry = "native_rhs"
    _second: NativeSecond | None = None
    _stages: NativeStages | None = None

    def __init__(self, rhs: NativeRHS, params: tuple[Tensor, ...], sign: int, with_jac: bool):
        self._rhs = rhs
        self._source = source = self._source_of(rhs)
        self._table, self._values = source.addresses(params)
        self._params = params
        self._note_places(params)
        self.n_params = sum(p.numel() for p in params)
        self._plain = all(p.dtype == source.dtype and p.device.type == "cpu" for p in params)
        offsets = itertools.accumulate((p.numel() for p in params), initial=0)
        self._places = [
            (p.shape, torch.empty(p.shape, device="meta").stride(), offset)
            for p, offset in zip(params, offsets, strict=False)
        ]
        args = NativeArgs(
            double=int(source.dtype == torch.float64),
            n=source.n,
            np=source.np,
            sign=sign,
            blocks=(rhs.batch_size or 1) if with_jac else 1,
            table=self._table.data_ptr(),
            workspace=source.workspace,
        )
        handle = c_int64()
        gate().call(self._entry, byref(args), source.source.encode(), byref(handle))
        self.handle = handle.value

    def _source_of(self, rhs: NativeRHS) -> NativeSource:
        return rhs.source

    def second(self) -> NativeSecond:
        """f's second-order products, with the parameters of this function; there must be code for them."""
        if self._second is None:
            self._second = NativeSecond(self._rhs, self._params, 1, False)
            weakref.finalize(self._second, gate().release, self._second.handle)
        self._second.params = self._params
        return self._second

    def stages(self, count: int) -> NativeStages | None:
        """The parameters' vjps at ``count`` stages at once, with the parameters of this function; ``None`` where one a
        stage is as good."""
        if self._stages is None or self._stages.count != count:
            source = self._rhs.stages_source(count)
            if source is None:
                return None
            self._stages = NativeStages(self._rhs, self._params, count)
            weakref.finalize(self._stages, gate().release, self._stages.handle)
        self._stages.params = self._params
        return self._stages

    @property
    def params(self) -> tuple[Tensor, ...]:
        """Values of ``rhs.params`` that calls use."""
        return self._params

    @params.setter
    def params(self, params: tuple[Tensor, ...]) -> None:
        # The usual case, the same parameters at the same places in memory, in a microsecond.
        if not (self._in_place and all(map(_IS_CONTIGUOUS, params)) and self._addresses(params) == self._pointers):
            table, self._values = self._source.addresses(params)
            self._table.copy_(table)
            self._note_places(params)
        self._params = params

    def _note_places(self, params: tuple[Tensor, ...]) -> None:
        self._pointers = self._addresses(params)
        self._in_place = list(map(_DATA_PTR, self._values)) == list(map(_DATA_PTR, params))

    def _addresses(self, params: tuple[Tensor, ...]) -> list[int]:
        return list(map(_DATA_PTR, (*params, *self._source.constants)))

    def parameter_gradients(self, flat: Tensor) -> list[Tensor]:
        """See :func:`pyjode.engines.julia.callbacks.parameter_gradients`."""
        if not self._plain:
            return parameter_gradients(flat, self._params)
        return [flat.as_strided(*place) for place in self._places]  # a third of the time that splitting takes


class NativeSecond(NativeFunction):
    """f's second-order products (julia/src/rosenbrock_adjoint.jl), which have a source and a table of their own."""

    _entry = "native_second"

    def _source_of(self, rhs: NativeRHS) -> NativeSource:
        assert isinstance(rhs.second_source, NativeSource)
        return rhs.second_source


class NativeStages(NativeFunction):
    """The parameters' vjps at several stages at once (julia/src/discrete_adjoint.jl)."""

    _entry = "native_stages"

    def __init__(self, rhs: NativeRHS, params: tuple[Tensor, ...], count: int):
        self.count = count
        super().__init__(rhs, params, 1, False)

    def _source_of(self, rhs: NativeRHS) -> NativeSource:
        source = rhs.stages_source(self.count)
        assert source is not None
        return source


class NativePool(NativeFunction):
    """The same for as many threads as will ask, each with scratch memory of its own; they share the parameters."""

    _entry = "native_pool"
