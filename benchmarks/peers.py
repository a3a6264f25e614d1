"""pyjode beside its peers, and beside the same problems written by hand in Julia.

    python -m benchmarks.peers                                  # every case, the table
    python -m benchmarks.peers --cases "mlp 1 x 10,robertson"   # some
    python -m benchmarks.peers --out DIR                        # results.json and results.csv as well
    python -m benchmarks.peers --apart                          # each library in a process of its own
    python -m benchmarks.peers --clock cpu                      # processor time, on a machine with other work

Forward plus gradient (scipy, and rows marked so, forward only), one tolerance a case, one thread. Medians of calls, a
few in a row, in rounds, forwards and backwards in turn; the first call, which compiles, apart. Errors of the solution
and of the gradient against a tight reference in float64 stand beside the times: see ``pyjode.compare``. "x pyjode" is
the time over that of pyjode's best row of the case at the case's tolerance, "x by hand" over the hand-written Julia's.

Controllers differ, and so do errors at one tolerance. Where both of pyjode's are below diffrax's, one more row has
pyjode at the loosest tolerance, of those up to 32 times the case's, where they still are (not with ``--apart``).

Once jax is imported, every solver in that process takes half as long again: short rows are to be read with ``--apart``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.apart import measure_apart
from benchmarks.limit import Limit
from pyjode.compare import Problem, Results, Row, compare, find_problem, register, torch_problem

EXPLICIT = (
    "pyjode:Tsit5",
    "pyjode:Tsit5+GaussAdjoint",
    "Julia by hand:Tsit5",
    "diffrax:Tsit5",
    "diffrax:Tsit5+BacksolveAdjoint",
    "torchode:Tsit5",
    "torchode:Tsit5+compile",
    "torchdiffeq:dopri5",
    "torchdiffeq:dopri5+adjoint",
    "torchdiffeq:dopri5+compile",
)
STIFF = ("pyjode:Rodas5P", "pyjode:FBDF", "Julia by hand:Rodas5P", "diffrax:Kvaerno5")
LOOSER = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Multiples of a case's tolerance that are tried for pyjode at diffrax's error."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One row group of the table.

    Attributes:
        problem: makes the problem.
        methods: those differentiated.
        forward: those only solved.
        rtol: the tolerance; the absolute one is the problem's multiple of it.
    """

    problem: Callable[[], Problem]
    methods: tuple[str, ...] = EXPLICIT
    forward: tuple[str, ...] = ("scipy:RK45",)
    rtol: float = 1e-6


def mlp(states: int, points: int) -> Problem:
    """The 2-50-50-2 tanh network in float32, ``points`` save points 0.025 apart, the first one the start."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2))

    def make(xp: Any) -> Callable[[Any, Any, Any], Any]:
        def f(t: Any, y: Any, p: Any) -> Any:
            w1, b1, w2, b2, w3, b3 = p
            return xp.tanh(xp.tanh(y @ w1.T + b1) @ w2.T + b2) @ w3.T + b3

        return f

    y0 = torch.randn(states, 2, generator=torch.Generator().manual_seed(1))
    ts = 0.025 * torch.arange(1, points, dtype=torch.float64)
    return torch_problem(_OfState(net), y0, ts, name=f"mlp {states} x {points}", make=make, batch=True)


class _OfState(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def recurrent(units: int) -> Problem:
    """dy/dt = W tanh(y) - y: a recurrent network of ``units`` units, float32, to t = 2."""
    draw = np.random.default_rng(units)
    weights = (draw.normal(size=(units, units)) * 1.5 / np.sqrt(units)).astype(np.float32)

    def make(xp: Any) -> Callable[[Any, Any, Any], Any]:
        return lambda t, y, p: p[0] @ xp.tanh(y) - y

    y0 = draw.normal(size=units).astype(np.float32)
    return Problem(f"recurrent {units}", make, y0, np.linspace(0.2, 2.0, 10), params=(weights,))


def lorenz_trajectories(count: int) -> Problem:
    """``count`` independent Lorenz trajectories, float64, to t = 1: what adapts its steps together pays for it."""

    def make(xp: Any) -> Callable[[Any, Any, Any], Any]:
        def f(t: Any, y: Any, p: Any) -> Any:
            sigma, r, b = p
            y1, y2, y3 = y[..., 0], y[..., 1], y[..., 2]
            # The axis by position: torch calls it dim.
            return xp.stack([sigma * (y2 - y1), y1 * (r - y3) - y2, y1 * y2 - b * y3], -1)

        return f

    y0 = np.random.default_rng(3).uniform((-10, -10, 15), (10, 10, 35), size=(count, 3))
    params = tuple(map(np.array, (10.0, 28.0, 8.0 / 3.0)))
    return Problem(f"lorenz x {count}", make, y0, np.linspace(0.1, 1.0, 10), params=params, batch=True)


def robertson() -> Problem:
    """Robertson's reaction to t = 100, 10 save points, float64."""
    return dataclasses.replace(find_problem("robertson"), atol=1e-2)


def van_der_pol() -> Problem:
    """van der Pol's oscillator, mu = 1000 in slow time, to t = 1 (one jump), float64."""
    found = find_problem("van-der-pol")
    return dataclasses.replace(found, name="van der Pol", ts=np.linspace(0.1, 1.0, 10), published=None, atol=1e-2)


class _ConvBlock(nn.Module):
    """The ODE block of torchdiffeq's MNIST example, without its time channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, channels), nn.GroupNorm(32, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(y)))
        return self.conv2(torch.relu(self.norm2(y)))


def conv_block() -> Problem:
    """A convolutional ODE block: 64 channels, 7 x 7, batch 128, float32, to t = 1 at 1e-3."""
    torch.manual_seed(0)

    def make(jnp: Any) -> Callable[[Any, Any, Any], Any]:
        import jax

        def norm(y: Any, w: Any, b: Any) -> Any:
            groups = y.reshape(y.shape[0], 32, -1)
            mean, var = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
            scaled = ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(y.shape)
            return scaled * w[:, None, None] + b[:, None, None]

        def conv(y: Any, w: Any, b: Any) -> Any:
            return jax.lax.conv(y, w, (1, 1), "SAME") + b[:, None, None]

        def f(t: Any, y: Any, p: Any) -> Any:
            n1w, n1b, n2w, n2b, c1w, c1b, c2w, c2b = p
            y = conv(jax.nn.relu(norm(y, n1w, n1b)), c1w, c1b)
            return conv(jax.nn.relu(norm(y, n2w, n2b)), c2w, c2b)

        return f

    y0 = torch.randn(128, 64, 7, 7, generator=torch.Generator().manual_seed(1))
    block = torch_problem(_ConvBlock(64), y0, [1.0], name="conv block", make=make)
    return dataclasses.replace(block, reference=1e-6)


_TRAJECTORIES = ("pyjode:Tsit5+independent", "diffrax:Tsit5+vmap")
_CONV = (
    "pyjode:Tsit5", "torchdiffeq:dopri5", "torchdiffeq:dopri5+adjoint", "torchdiffeq:dopri5+compile", "torchode:Tsit5",
    "diffrax:Tsit5",
)  # fmt: skip
_STIFF_FORWARD = ("scipy:LSODA", "scipy:Radau")

CASES: dict[str, Case] = {
    "mlp 1 x 10": Case(lambda: mlp(1, 10)),
    "mlp 20 x 10": Case(lambda: mlp(20, 10)),
    "mlp 20 x 100": Case(lambda: mlp(20, 100)),
    "robertson": Case(robertson, STIFF, _STIFF_FORWARD),
    "van der Pol": Case(van_der_pol, STIFF, _STIFF_FORWARD),
    "recurrent 50": Case(lambda: recurrent(50)),
    "recurrent 1000": Case(lambda: recurrent(1000)),
    "lorenz x 10000": Case(lambda: lorenz_trajectories(10_000), (*EXPLICIT, *_TRAJECTORIES), forward=()),
    "conv block": Case(conv_block, _CONV, forward=(), rtol=1e-3),
}


def measure(case: Case, repeats: int, limit_s: float, say: Callable[[str], None], clock: str = "wall") -> Results:
    """One case on all its peers."""
    problem = case.problem()
    options: dict[str, Any] = {
        "tolerances": (case.rtol,),
        "repeats": repeats,
        "limit_s": limit_s,
        "clock": clock,
        "progress": say,
    }
    modes = (("gradient", case.methods), ("forward", case.forward))
    found = [compare(problem, methods=methods, modes=(mode,), **options) for mode, methods in modes if methods]
    rows = found[0].rows
    diffrax, ours = _fastest(rows, "diffrax"), _fastest(rows, "pyjode")
    if diffrax is not None and ours is not None and _as_accurate(ours, diffrax):
        looser = tuple(case.rtol * factor for factor in LOOSER)
        tried = compare(
            problem, methods=[f"pyjode:{ours.method}"], modes=("gradient",), **options | {"tolerances": looser}
        )
        enough = sorted((row for row in tried.rows if row.ok and _as_accurate(row, diffrax)), key=lambda row: row.rtol)
        found.append(dataclasses.replace(tried, rows=tuple(enough[-1:])))
    return Results(
        tuple(row for results in found for row in results.rows),
        {k: v for results in found for k, v in results.references.items()},
        found[0].machine,
    )


def _fastest(rows: Iterable[Row], library: str) -> Row | None:
    """The library's fastest gradient."""
    of_library = [row for row in rows if row.library == library and row.mode == "gradient" and row.ok and row.seconds]
    return min(of_library, key=lambda row: row.seconds or 0, default=None)


def _as_accurate(row: Row, other: Row) -> bool:
    pairs = ((row.error, other.error), (row.gradient_error, other.gradient_error))
    return all(mine is not None and theirs is not None and mine <= theirs for mine, theirs in pairs)


def table(rows: list[Row]) -> Any:
    """All cases in one table, and the lines of what failed."""
    from rich.table import Table

    shown = Table(title="forward plus gradient (f: forward only), ms")
    shown.add_column("case", no_wrap=True)
    shown.add_column("solver", no_wrap=True)
    for head in ("ms", "x pyjode", "x by hand", "error", "gradient error", "first ms", "nfe"):
        shown.add_column(head, justify="right")
    failed = []
    for case in dict.fromkeys(row.problem for row in rows):
        of_case = [row for row in rows if row.problem == case and row.ok and row.seconds]
        rtol = min((row.rtol for row in of_case), default=0.0)
        at_rtol = [row for row in of_case if row.rtol == rtol]
        ours, limit = (_ms(_fastest(at_rtol, library)) for library in ("pyjode", "Julia by hand"))
        for i, row in enumerate(of_case):
            ms = _ms(row) or 0
            shown.add_row(
                case if i == 0 else "",
                f"{row.library} {row.method}{' (f)' if row.mode == 'forward' else ''}"
                f"{'' if row.rtol == rtol else f' at {row.rtol:.0e}'}",
                f"{ms:.3g}",
                f"{ms / ours:.2f}" if ours and row.mode == "gradient" else "",
                f"{ms / limit:.2f}" if limit and row.mode == "gradient" else "",
                f"{row.error:.1e}",
                f"{row.gradient_error:.1e}" if row.gradient_error is not None else "",
                f"{1e3 * (row.first_seconds or 0):.0f}",
                "" if row.nfe is None else str(row.nfe),
            )
        shown.add_section()
        failed += [row for row in rows if row.problem == case and not row.ok]
    return shown, [f"{row.problem}: {row.library} {row.method}: {row.status}" for row in failed]


def _ms(row: Row | None) -> float | None:
    return None if row is None or row.seconds is None else 1e3 * row.seconds


def only(case: Case, libraries: Iterable[str]) -> Case:
    """The case for some of its libraries."""
    wanted = set(libraries)
    return dataclasses.replace(
        case,
        methods=tuple(m for m in case.methods if m.partition(":")[0] in wanted),
        forward=tuple(m for m in case.forward if m.partition(":")[0] in wanted),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _apart(name: str, case: Case, args: argparse.Namespace) -> Results:
    def command(libraries: str, out: Path) -> list[str]:
        options = ["--cases", name, "--only", libraries, "--out", str(out.parent), "--clock", args.clock]
        options += ["--repeats", str(args.repeats), "--limit", str(args.limit)]
        return ["-m", "benchmarks.peers", *options, *(["--no-compile"] if args.no_compile else [])]

    _say(name)
    return measure_apart(command, (*case.methods, *case.forward), 3, _say)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a call may take (default 120)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="wall time, or this process's alone")
    parser.add_argument("--only", help="libraries to measure, of each case's")
    parser.add_argument("--apart", action="store_true", help="each library in a process of its own, in three rounds")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--out", type=Path, help="folder for results.json and results.csv")
    args = parser.parse_args()
    names = [name.strip() for name in args.cases.split(",")]
    for name in names:
        if name not in CASES:
            parser.error(f"no case {name!r}; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    register(Limit())
    found: list[Results] = []
    for name in names:
        case = CASES[name]
        if args.no_compile:
            case = dataclasses.replace(case, methods=tuple(m for m in case.methods if not m.endswith("+compile")))
        if args.only:
            case = only(case, args.only.split(","))
            if not (case.methods or case.forward):
                parser.error(f"none of {args.only} is in {name!r}")
        found.append(
            _apart(name, case, args) if args.apart else measure(case, args.repeats, args.limit, _say, args.clock)
        )
        if args.out is not None:  # after each case: the next may take long, and be interrupted
            args.out.mkdir(parents=True, exist_ok=True)
            whole = functools.reduce(Results.followed_by, found)
            whole.to_json(args.out / "results.json")
            whole.to_csv(args.out / "results.csv")
    rows = [row for results in found for row in results.rows]
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=140)
    shown, failed = table(rows)
    console.print(shown)
    for line in failed:
        print(line)
    print(json.dumps(found[0].machine))


if __name__ == "__main__":
    main()
