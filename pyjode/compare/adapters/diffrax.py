"""diffrax."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyjode.compare.adapters.base import Adapter, Outcome, Solver, split_method
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss
from pyjode.errors import InputError


class DiffraxAdapter(Adapter):
    """diffrax under ``jax.jit``, in the problem's precision, for problems with jax code.

    Gradients by its default (``RecursiveCheckpointAdjoint``), or ``"Tsit5+BacksolveAdjoint"``; with ``"Tsit5+vmap"``
    the rows of a batch have their own steps. Compilation is in the first call's time.
    """

    name = "diffrax"
    package = "diffrax"

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        if problem.stiff:
            return ("Kvaerno5",)
        return ("Tsit5", "Tsit5+BacksolveAdjoint") if gradient else ("Tsit5", "Dopri8")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        return _DiffraxSolver(problem, method, loss)


class _DiffraxSolver(Solver):
    def __init__(self, problem: Problem, method: str, loss: Loss | None):
        import diffrax
        import jax
        import jax.numpy as jnp

        name, variant = split_method(method)
        adjoint_name = None if variant == "vmap" else variant
        self.x64 = problem.y0.dtype == np.float64
        if not hasattr(diffrax, name):
            raise InputError(f"diffrax has no method {name!r}")
        solver = getattr(diffrax, name)()
        adjoint = getattr(diffrax, adjoint_name or "RecursiveCheckpointAdjoint")()
        self.jax, self.solver, self.loss = jax, solver, loss
        with jax.enable_x64(self.x64):
            f = problem.in_jax()
            term = diffrax.ODETerm(f)
            self.y0, self.params = jnp.asarray(problem.y0), tuple(map(jnp.asarray, problem.params))
            ts = jnp.asarray(problem.ts)
            scale = None if loss is None else jnp.asarray(loss.scale)

        def one(y0: Any, params: Any, rtol: Any, atol: Any) -> Any:
            solution = diffrax.diffeqsolve(
                term,
                solver,
                problem.t0,
                problem.t1,
                None,
                y0,
                params,
                saveat=diffrax.SaveAt(ts=ts),
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
                adjoint=adjoint,
                max_steps=100_000,
            )
            return solution.ys, solution.stats["num_accepted_steps"], solution.stats["num_steps"]

        def forward(y0: Any, params: Any, rtol: Any, atol: Any) -> Any:
            if variant != "vmap":
                return one(y0, params, rtol, atol)
            ys, accepted, steps = jax.vmap(one, in_axes=(0, None, None, None))(y0, params, rtol, atol)
            return jnp.moveaxis(ys, 0, 1), accepted.max(), steps.max()

        def objective(variables: Any, rtol: Any, atol: Any) -> Any:
            found = forward(variables[0], variables[1], rtol, atol)
            return (found[0] / scale) ** 2 / 2, found

        def summed(variables: Any, rtol: Any, atol: Any) -> Any:
            losses, found = objective(variables, rtol, atol)
            return losses.sum(), found

        if loss is None:
            self.call = jax.jit(lambda variables, rtol, atol: (forward(variables[0], variables[1], rtol, atol), None))
        else:
            differentiated = jax.value_and_grad(summed, has_aux=True)

            def both(variables: Any, rtol: Any, atol: Any) -> Any:
                (_, found), gradient = differentiated(variables, rtol, atol)
                return found, gradient

            self.call = jax.jit(both)

    def solve(self, rtol: float, atol: float) -> Any:
        with self.jax.enable_x64(self.x64):
            return self.jax.block_until_ready(self.call((self.y0, self.params), rtol, atol))

    def outcome(self, raw: Any) -> Outcome:
        (ys, accepted, steps), gradient = raw
        flat = None
        if gradient is not None:
            by_y0, by_params = gradient
            flat = np.concatenate([np.asarray(g).reshape(-1) for g in (by_y0, *by_params)])
        return Outcome(np.asarray(ys), flat, self._nfe(int(steps)), int(accepted))

    def _nfe(self, steps: int) -> int | None:
        """From the tableau: diffrax does not count; an implicit method's iterations are unknown."""
        tableau = getattr(self.solver, "tableau", None)
        if tableau is None or type(self.solver).__name__.startswith(("Kvaerno", "KenCarp", "Sil3")):
            return None
        return 1 + steps * (tableau.num_stages - 1 if tableau.fsal else tableau.num_stages)
