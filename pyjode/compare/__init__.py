"""The same problem on several solver libraries: errors, times, work-precision diagrams.

    from pyjode.compare import compare, plot

    results = compare("lorenz")                             # a standard problem
    results = compare(my_module, y0, torch.linspace(1, 10, 10))  # your own f

    for table in results.tables():
        rich.print(table)
    plot(results, "lorenz", "gradient").savefig("lorenz.png")

``pip install "pyjode[compare]"`` brings what it needs. To add a library, subclass :class:`Adapter` and ``register`` it.
"""

from pyjode.compare.adapters import Adapter, Outcome, Solver, adapters, register
from pyjode.compare.plot import overview, plot, save_plots
from pyjode.compare.problem import Problem, Published, torch_problem
from pyjode.compare.problems import find_problem, problem_names
from pyjode.compare.reference import Loss, Reference, reference
from pyjode.compare.results import Results, Row
from pyjode.compare.run import compare
from pyjode.compare.summary import Contender, Standing, markdown, standings, time_to

__all__ = [
    "Adapter",
    "Contender",
    "Loss",
    "Outcome",
    "Problem",
    "Published",
    "Reference",
    "Results",
    "Row",
    "Solver",
    "Standing",
    "adapters",
    "compare",
    "find_problem",
    "markdown",
    "overview",
    "plot",
    "problem_names",
    "reference",
    "register",
    "save_plots",
    "standings",
    "time_to",
    "torch_problem",
]
