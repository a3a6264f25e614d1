"""Dynamics written in Julia: ``JuliaFunction("...", params=...)``, used wherever a torch f is."""

from __future__ import annotations

import keyword
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyjode.door import refuse_batched_backward, refuse_second_derivative
from pyjode.errors import InputError, UnsupportedError
from pyjode.rhs.closure import explicit_params, unique
from pyjode.rhs.interface import RightHandSide, Way
from pyjode.state import StateLayout

CALL_F, CALL_VJP, CALL_JACOBIAN, CALL_TIME_GRADIENT = 0, 1, 2, 3
"""As in julia/src/source_rhs.jl."""


@dataclass(frozen=True)
class Source:
    """What the Julia side is told: the texts, and how parameters are put together for them."""

    text: str
    vjp: str | None
    jac: str | None
    structure: str


class JuliaFunction(nn.Module):
    """dy/dt = f(t, y) as Julia source, in SciML's convention.

    The source is one of

    - a function expression: ``"(u, p, t) -> -p.k .* u"``;
    - a file of definitions that ends with the function: ``"function lorenz!(du, u, p, t) ... end"``; what comes before
      (``using LinearAlgebra``, helpers, constants) belongs to it;
    - just a body in ``u``, ``p`` and ``t``, and ``du`` if it works in place: ``"du[1] = p.a * u[2]"``.

    A function of three arguments ``f(u, p, t)`` returns the derivative, one of four ``f!(du, u, p, t)`` writes every
    entry of ``du``.

    **Shapes.** Every array has in Julia the shape and the indices, from 1, that the tensor has in torch: a state of
    shape ``(d,)`` is a vector, entry ``A[0, 1]`` of a parameter is ``A[1, 2]``. A tensor of no dimensions is a number.
    Numbers are those of the state's dtype. With ``batched=True`` the first axis of the state counts samples and the
    source sees one of them: y of shape ``(B, d)``, ``u`` a vector of ``d``.

    **Parameters.** ``p`` is what ``params`` is: a tensor an array, a dict a ``NamedTuple`` (nested dicts nest), a list
    or tuple a tuple, a module the ``NamedTuple`` of its parameters. An ``nn.Parameter`` becomes this module's
    parameter; other tensors stay what they are, and get gradients where they require grad.

    **Derivatives** are taken by ForwardDiff.jl (Revels, Lubin, Papamarkou, "Forward-mode automatic differentiation in
    Julia", 2016), which calls the function with dual numbers: arguments must not be restricted to ``Float64``. A
    vector-Jacobian product costs (d + number of parameter entries) / 8 calls: with hundreds of parameters write
    ``vjp``.

    It is a torch function too: ``f(t, y)`` evaluates it, differentiably, so that a torch f may call it.

    Args:
        source: Julia source, or the path of a file of it.
        params: tensors (see above), or ``None``: ``p`` is an empty tuple.
        batched: whether the source is written for one row of the state.
        vjp: Julia source of ``(v, u, p, t) -> (by_u, by_p)``: the products of v with df/du, shaped like ``u``, and with
            df/dp, made like ``p`` (``nothing`` for zero), instead of ForwardDiff's.
        jac: Julia source of ``jac(u, p, t)`` or ``jac!(J, u, p, t)``: df/du, (d, d), for stiff methods.

    Raises:
        InputError: params hold something that is no tensor, or names Julia cannot have.
        JuliaSourceError: at first use, what is wrong with the source, and where.

    Example:
        >>> decay = JuliaFunction("(u, p, t) -> -p.k .* u", params={"k": torch.tensor(2.0)})  # doctest: +SKIP
        >>> ys = pyjode.odeint(decay, torch.ones(3), torch.linspace(0.0, 1.0, 5))  # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | Path,
        params: Any = None,
        *,
        batched: bool = False,
        vjp: str | None = None,
        jac: str | None = None,
    ):
        super().__init__()
        if isinstance(source, Path):
            source = source.read_text()
        if not isinstance(source, str) or not source.strip():
            raise InputError("source is empty; it is Julia code, a function f(u, p, t) or f!(du, u, p, t)")
        self.batched = batched
        self._holders: list[tuple[nn.Module, str]] = []
        if isinstance(params, nn.Module):
            self.params_module = params
            params = _nested(dict(params.named_parameters()))
        structure, taken = self._structure(params, "p")
        assemble = f"x -> {structure}"
        self.source = Source(source, vjp, jac, f"({assemble}, p -> ({''.join(f'{x}, ' for x in taken)}))")
        self._made: dict[Any, JuliaRHS] = {}

    def _structure(self, params: Any, path: str) -> tuple[str, list[str]]:
        """Julia code that makes p of the leaves x[1], x[2], ..., and the code of each leaf from p."""
        if params is None:
            return "()", []
        if isinstance(params, Tensor | float | int):
            return f"x[{self._hold(params, path)}]", [path]
        parts, taken = [], []
        if isinstance(params, Mapping):
            for name, value in params.items():
                if not isinstance(name, str) or not name or '"' in name or "\\" in name:
                    raise InputError(f"params has the name {name!r}; names are strings without quotes")
                code, below = self._structure(value, f'{path}.var"{name}"')
                parts.append(f'var"{name}" = {code}')
                taken += below
            return f"(; {', '.join(parts)})", taken
        if isinstance(params, Iterable) and not isinstance(params, str):
            for i, value in enumerate(params):
                code, below = self._structure(value, f"{path}[{i + 1}]")
                parts.append(code)
                taken += below
            return f"({''.join(f'{x}, ' for x in parts)})", taken
        raise InputError(
            f"params holds a {type(params).__name__}; it is a tensor, or dicts, lists and tuples of tensors"
        )

    def _hold(self, value: Any, path: str) -> int:
        """Keep a leaf as an attribute, so that torch moves, saves and finds it; its number, from 1."""
        x = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        if not (x.is_floating_point() or x.dtype in (torch.int64, torch.int32)):
            raise InputError(f"params: {path} has dtype {x.dtype}; parameters are real numbers")
        for module in self.modules():
            for name, mine in module.named_parameters(recurse=False):
                if mine is x:
                    self._holders.append((module, name))
                    return len(self._holders)
        name = path.removeprefix("p.").replace('var"', "").replace('"', "")
        name = "".join(c if c.isalnum() else "_" for c in name).strip("_") or "p"
        while hasattr(self, name) or keyword.iskeyword(name):
            name += "_"
        if isinstance(x, nn.Parameter):
            self.register_parameter(name, x)
        else:
            self.register_buffer(name, x)
        self._holders.append((self, name))
        return len(self._holders)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors in ``params``, in order."""
        return tuple(getattr(module, name) for module, name in self._holders)

    def forward(self, t: float | Tensor, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """dy/dt, shaped like ``y``; differentiable in y, t and the parameters.

        Raises:
            JuliaSourceError: the source does not parse, or raised an exception.
            EngineUnavailable: Julia is not set up: this f cannot do without.
        """
        if type(y) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(y):
            raise UnsupportedError("a JuliaFunction takes plain tensors: torch.func and tracing cannot look into it")
        layout = StateLayout.of(y)
        rhs = self.right_hand_side(layout)
        time = torch.as_tensor(t, dtype=layout.dtype)
        return layout.unflatten(_Call.apply(rhs, time, layout.flatten(y), *rhs.params))

    def right_hand_side(self, layout: StateLayout, params: tuple[Tensor, ...] = ()) -> JuliaRHS:
        """What engines need of it, for states of one layout.

        Args:
            layout: of the state.
            params: further tensors to give (zero) gradients to.
        """
        leaves = self.leaves
        key = (layout, tuple((id(x), x.requires_grad, x.shape) for x in leaves), tuple(map(id, params)))
        made = self._made.get(key)
        if made is None or any(a is not b for a, b in zip(made.leaves, leaves, strict=True)):
            if len(self._made) >= 8:
                self._made.clear()
            made = self._made[key] = JuliaRHS(self.source, self.batched, leaves, layout, params)
        return made

    def __pyjode_rhs__(self, layout: StateLayout, y0: Any, t0: float, params: Any, way: str) -> RightHandSide:
        if way in ("traced", "eager"):
            raise UnsupportedError(f"rhs={way!r} is for an f in torch; a JuliaFunction is native: leave rhs out")
        rhs = self.right_hand_side(layout, explicit_params(params))
        rhs.check(y0, t0)
        return rhs

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}}

    def extra_repr(self) -> str:
        lines = self.source.text.strip().splitlines()
        return lines[0] + (" ..." if len(lines) > 1 else "")


class JuliaRHS(RightHandSide):
    """A :class:`JuliaFunction` for states of one layout."""

    way: ClassVar[Way] = "native"

    def __init__(
        self, source: Source, batched: bool, leaves: tuple[Tensor, ...], layout: StateLayout, more: tuple[Tensor, ...]
    ):
        if not layout.is_single_tensor:
            raise UnsupportedError("a JuliaFunction's state is one real tensor; put several into one with torch.cat")
        shape = tuple(layout.leaves[0].shape)
        if batched and not shape:
            raise InputError("batched=True: the state has no axis that could count samples")
        self.source = source
        self.layout = layout
        self.leaves = leaves
        self.params = unique((*(x for x in leaves if x.requires_grad), *more))
        self.reason = "f is Julia source"
        self.seen_shape = shape[1:] if batched else shape
        self._rows = shape[0] if batched else None
        self._checked = False
        self._own: Any = None

    def check(self, y0: Any, t0: float) -> None:
        """Evaluate it once, for what can be found only so.

        Raises:
            JuliaSourceError: the source does not parse, or raised an exception.
            InputError: an entry of the derivative is NaN at a finite state, so probably was not set.
        """
        if self._checked:
            return
        with torch.no_grad():
            u = self.layout.flatten(y0).detach().clone()
            out = self.f(torch.as_tensor(t0, dtype=self.layout.dtype), u, self.params).reshape(
                self.layout.leaves[0].shape
            )
            missing = (out.isnan()).nonzero().tolist()
        if missing and bool(torch.isfinite(u).all()):
            entries = ", ".join(str([i + 1 for i in index]) for index in missing[:4])
            batch = "; for a source that is written for one row of the state, pass batched=True" if out.ndim > 1 else ""
            raise InputError(
                f"the Julia source leaves du{entries}{', ...' if len(missing) > 4 else ''} NaN at the initial state: "
                f"f!(du, u, p, t) must set every entry of du{batch}"
            )
        self._checked = True

    def _bound(self, params: tuple[Tensor, ...]) -> Any:
        # Not at the top: an import must not need what only the Julia engine has.
        from pyjode.engines.julia.boundary import gate
        from pyjode.engines.julia.source import SourceFunction

        if self._own is None:
            self._own = SourceFunction(self, params, 1, True)
            weakref.finalize(self, gate().release, self._own.handle)
        else:
            self._own.params = params
        return self._own

    def _call(self, what: int, out: Tensor, t: Tensor, u: Tensor, params: Any, *more: Tensor) -> Tensor:
        self._bound(params).call(what, out, t, u.contiguous(), *(x.contiguous() for x in more))
        return out

    def f(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._call(CALL_F, torch.empty_like(u), t, u, params)

    def vjp_u(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._call(CALL_VJP, torch.empty_like(u), t, u, params, v)

    def vjp_p(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.vjp_up(t, u, v, params)[1]

    def vjp_up(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        by_p = torch.zeros(sum(p.numel() for p in params), dtype=self.layout.dtype)
        by_u = self._call(CALL_VJP, torch.empty_like(u), t, u, params, v, by_p)
        return by_u, tuple(self._own.parameter_gradients(by_p))

    def jacobian(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        if self._rows is None:
            # Julia's memory has columns end to end.
            return self._call(CALL_JACOBIAN, u.new_empty(self.layout.n, self.layout.n), t, u, params).mT.contiguous()
        return torch.block_diag(*self.jacobian_blocks(t, u, params))

    def jacobian_blocks(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        rows = self._rows or 1
        d = self.layout.n // rows
        return self._call(CALL_JACOBIAN, u.new_empty(rows, d, d), t, u, params).mT.contiguous()

    @property
    def batch_size(self) -> int | None:
        return self._rows if self._rows is not None and self._rows > 1 else None

    def time_gradient(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._call(CALL_TIME_GRADIENT, torch.empty_like(u), t, u, params)


def _nested(parameters: dict[str, Tensor]) -> dict[str, Any]:
    """``{"a.b": x}`` as ``{"a": {"b": x}}``."""
    nest: dict[str, Any] = {}
    for path, x in parameters.items():
        *folders, name = path.split(".")
        inner = nest
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = x
    return nest


class _Call(torch.autograd.Function):
    """One evaluation, outside of a solve."""

    @staticmethod
    def forward(ctx: Any, rhs: JuliaRHS, t: Tensor, u: Tensor, *params: Tensor) -> Tensor:
        ctx.rhs = rhs
        ctx.save_for_backward(t, u, *params)
        return rhs.f(t, u, params)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        refuse_second_derivative()
        refuse_batched_backward(v)
        t, u, *params = ctx.saved_tensors
        by_u, by_p = ctx.rhs.vjp_up(t, u, v, tuple(params))
        by_t = (ctx.rhs.time_gradient(t, u, tuple(params)) * v).sum() if ctx.needs_input_grad[1] else None
        return (None, by_t, by_u, *by_p)
