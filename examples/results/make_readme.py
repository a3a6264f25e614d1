"""Writes README.md beside it, from the metrics.json of every study here: ``python examples/results/make_readme.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ORDER = (
    "damped_pendulum",
    "mnist_three_ways",
    "linear_system",
    "cifar10_solvers",
    "glucose",
    "spiral",
    "mnist_resnet18",
    "mnist_8x8_runge_kutta",
    "stiff_kinetics",
    "bouncing_ball",
    "augmented",
    "regularized",
    "ensemble",
    "distributed_training",
)

INTRODUCTION = """\
# Results

Every study of the gallery as it was last run, the reports' figures beside ours. This page is made by
`python examples/results/make_readme.py` from the `metrics.json` that each script wrote; what the figures say about the
reports' claims is in [findings.md](../../docs/findings.md).

The runs share two cores with other work, one thread each: times compare within a study, not with the reports' machines.
Where the sizes are below the report's ("cut"), it is to fit all runs into three hours or so: convolutions take a core
hours at the reports' sizes. Each script runs the report's full sizes without options.
"""


def section(name: str) -> str:
    metrics = json.loads((HERE / name / "metrics.json").read_text())
    engine = {"julia": "Julia", "torchdiffeq": "embedded (torchdiffeq)"}[metrics["engine"]]
    cut = "; ".join(metrics["cut"]) or "nothing"
    lines = [
        f"## {metrics['study']}",
        "",
        f"[{name}.py](../{name}.py). Engine: {engine}. Cut: {cut}. Seed {metrics['seed']}, "
        f"{metrics['seconds']:.0f} s in all.",
        "",
        "| what | report | ours |",
        "|---|---|---|",
    ]
    lines += [f"| {row['what']} | {row['report'] or '-'} | {row['ours']} |" for row in metrics["comparison"]]
    figures = sorted(path.name for path in (HERE / name).glob("*.png"))
    lines += ["", *[f"![{name}: {figure.removesuffix('.png')}]({name}/{figure})" for figure in figures], ""]
    return "\n".join(lines)


def readme() -> str:
    there = [name for name in ORDER if (HERE / name / "metrics.json").exists()]
    return "\n".join([INTRODUCTION, *(map(section, there) if there else ["No study has been run in full yet.\n"])])


if __name__ == "__main__":
    (HERE / "README.md").write_text(readme())
    missing = [name for name in ORDER if not (HERE / name / "metrics.json").exists()]
    if missing:
        print(f"not run yet: {', '.join(missing)}", file=sys.stderr)
