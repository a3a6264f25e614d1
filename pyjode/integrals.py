"""Scalars integrated along a solution, in the same solve: the divergence of flows, regularisers of neural ODEs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyjode.divergence import checked_noise, draw_noise, exact_divergence, hutchinson_divergence, sum_rows
from pyjode.errors import InputError

REGULARIZERS = ("kinetic", "jacobian")


class WithIntegrals(nn.Module):
    """Dynamics of a state together with integrals along it, one number a row (:mod:`pyjode.divergence`).

    The state is a dict: ``"y"``; under its name each integral, shape ``(B,)``, zero at first; and ``"noise"`` where an
    estimate needs it: in the state, with derivative zero, it is one for each solve, and stays what it was until the
    backward pass.

    Integrals (of ``dt``: negative where time runs backwards):

    - ``"divergence"``: of ``tr(df/dy)``.
    - ``"kinetic"``: of ``|f|^2``.
    - ``"jacobian"``: of ``|noise^T df/dy|^2``, an unbiased estimate of the squared Frobenius norm of the Jacobian.

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, section 4; Grathwohl et al.,
    "FFJORD", ICLR 2019; Finlay et al., "How to train your neural ODE: the world of Jacobian and kinetic
    regularization", ICML 2020, section 4.

    Args:
        f: dynamics of ``y``, one real tensor; its rows must not depend on each other.
        integrals: names of the above.
        exact: the exact divergence instead of Hutchinson's estimate.
        noise: ``"rademacher"`` or ``"gaussian"``.

    Raises:
        InputError: an unknown name.
    """

    def __init__(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        integrals: Iterable[str],
        *,
        exact: bool = False,
        noise: str = "rademacher",
    ):
        super().__init__()
        self.f = f
        self.integrals = _known(integrals, ("divergence", *REGULARIZERS), "integrals")
        self.exact = exact
        self.noise = checked_noise(noise)

    @property
    def draws_noise(self) -> bool:
        """Whether a state holds noise."""
        return "jacobian" in self.integrals or ("divergence" in self.integrals and not self.exact)

    def start(self, y0: Any, **integrals: Tensor) -> dict[str, Tensor]:
        """The initial state at ``y0``, with fresh noise from torch's generator.

        Args:
            y0: shape ``(B, ...)`` or ``(d,)``.
            integrals: where others than zeros are wanted, shape ``(B,)`` or ``()``.

        Raises:
            InputError: ``y0`` is no real tensor, or an integral has another shape than one number a row.
        """
        if not isinstance(y0, Tensor) or not y0.is_floating_point():
            what = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
            raise InputError(f"y0 is {what}; {', '.join(self.integrals)} need a state that is one real tensor")
        state = {"y": y0}
        zeros = sum_rows(torch.zeros_like(y0, requires_grad=False))
        for name in self.integrals:
            value = integrals.get(name, zeros)
            if value.shape != zeros.shape:
                raise InputError(
                    f"{name} has shape {tuple(value.shape)}; it has one number a row: {tuple(zeros.shape)}"
                )
            state[name] = value.to(y0.dtype)
        if self.draws_noise:
            state["noise"] = draw_noise(y0, self.noise)
        return state

    def forward(self, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        y = state["y"]
        found: dict[str, Tensor] = {}
        if self.draws_noise:
            dy, found["divergence"], swept = hutchinson_divergence(self.f, t, y, state["noise"].detach())
            found["jacobian"] = sum_rows(swept.square())
        if "divergence" in self.integrals and self.exact:
            dy, found["divergence"] = exact_divergence(self.f, t, y)
        elif not self.draws_noise:
            dy = self.f(t, y)
        if "kinetic" in self.integrals:
            found["kinetic"] = sum_rows(dy.square())
        rates = {"y": dy} | {name: found[name] for name in self.integrals}
        if self.draws_noise:
            rates["noise"] = torch.zeros_like(state["noise"])
        return rates

    def extra_repr(self) -> str:
        return f"{', '.join(self.integrals)}, exact={self.exact}, noise={self.noise!r}"


def with_integrals(layer: Any, integrals: tuple[str, ...], *, noise: str, exact: bool = False) -> WithIntegrals:
    """``layer.f`` with its integrals, the same object each time while ``layer.f`` and what is asked for are the same.

    What is known of a right-hand side is remembered by object. It is no submodule of the layer: the parameters of f
    would have two names.
    """
    known = vars(layer).get("_with_integrals")
    wanted = (integrals, exact, noise)
    if known is None or known.f is not layer.f or (known.integrals, known.exact, known.noise) != wanted:
        known = WithIntegrals(layer.f, integrals, exact=exact, noise=noise)
        object.__setattr__(layer, "_with_integrals", known)
    return known


def regularizers(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names of a ``regularize=`` argument.

    Raises:
        InputError: an unknown name.
    """
    return _known((), REGULARIZERS, "regularize") if names is None else _known(names, REGULARIZERS, "regularize")


def _known(names: str | Iterable[str], choices: tuple[str, ...], where: str) -> tuple[str, ...]:
    listed: tuple[Any, ...] = (names,) if isinstance(names, str) else tuple(names)
    for name in listed:
        if name not in choices:
            raise InputError(f"{where} holds {name!r}; choose from {', '.join(map(repr, choices))}")
    return tuple(dict.fromkeys(listed))
