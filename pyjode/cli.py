"""The ``pyjode`` command: set Julia up, say what is there, list the solvers, compare libraries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pyjode._version import __version__
from pyjode.errors import InputError, PyjodeError
from pyjode.methods import ENGINES, KINDS, methods


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0 it worked, 1 it did not, 2 it was typed wrongly."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except PyjodeError as error:
        print(f"pyjode: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "; run the command again, it goes on from where it was" if args.run is _setup else ""
        print(f"pyjode: interrupted{again}", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyjode", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pyjode {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    setup = commands.add_parser(
        "setup",
        help="set the Julia engine up (downloads Julia where there is none)",
        description="Without options: use the Julia that is known already, else have juliapkg download Julia and the "
        "packages. With --julia alone: install the packages for that Julia. With --julia and --project: use these, for "
        "machines without network, and remember them. An interrupted setup goes on when it is run again.",
    )
    setup.add_argument("--julia", metavar="PATH", help="an existing julia executable")
    setup.add_argument("--project", metavar="DIR", help="an existing Julia environment with the packages")
    setup.add_argument("--depot", metavar="PATHS", help="JULIA_DEPOT_PATH to use with them, if not the default")
    setup.add_argument("--forget", action="store_true", help="forget what --julia and --project made it remember")
    setup.add_argument(
        "--sysimage",
        action="store_true",
        help="build a system image too, for a faster start with stiff methods and continuous adjoints",
    )
    setup.add_argument("--time-limit", type=float, default=60.0, metavar="MINUTES", help="of each step (default 60)")
    setup.set_defaults(run=_setup)

    doctor = commands.add_parser("doctor", help="say what is found and missing, and time a first gradient")
    doctor.add_argument("--json", action="store_true", help="as one JSON object")
    doctor.add_argument("--time-limit", type=float, default=20.0, metavar="MINUTES", help="of the timing (default 20)")
    doctor.set_defaults(run=_doctor)

    listing = commands.add_parser("methods", help="list the solvers")
    listing.add_argument("--kind", choices=KINDS, help="only this kind")
    listing.add_argument("--engine", choices=ENGINES, help="only those of this engine")
    listing.set_defaults(run=_methods)

    comparing = commands.add_parser(
        "compare",
        help="the same problem on several solver libraries",
        description="Errors, times and evaluations at a ladder of tolerances, forward and with gradients.",
    )
    comparing.add_argument(
        "--problem",
        action="append",
        metavar="NAMES",
        help="names separated by commas (--list shows them); all, detest, stiff, nonstiff; or FILE.py:NAME, "
        "a pyjode.compare.Problem. May be repeated; default lorenz",
    )
    comparing.add_argument("--list", action="store_true", help="list the standard problems")
    comparing.add_argument("--library", action="append", metavar="NAME", help="only this library; may be repeated")
    comparing.add_argument("--method", action="append", metavar="LIBRARY:METHOD", help="these methods instead")
    comparing.add_argument("--mode", choices=("forward", "gradient"), help="only this")
    comparing.add_argument("--tolerance", action="append", type=float, metavar="RTOL", help="may be repeated")
    comparing.add_argument("--repeats", type=int, default=7, help="timed calls of each (default 7)")
    comparing.add_argument("--time-limit", type=float, default=20.0, metavar="S", help="of one solve (default 20)")
    comparing.add_argument("--keep-threads", action="store_true", help="leave torch's threads as they are (else one)")
    comparing.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for busy machines (default wall)"
    )
    comparing.add_argument("--out", metavar="DIR", help="write results.json, results.csv and the diagrams here")
    comparing.add_argument(
        "--again", action="store_true", help="with --out: no new solves; tables and diagrams of the results.json there"
    )
    comparing.add_argument("--markdown", metavar="FILE", help="write the table of who is fastest here")
    comparing.set_defaults(run=_compare)
    return parser


def _say(line: str) -> None:
    # Flushed: the lines of the processes started next must come after it.
    print(f"pyjode: {line}", flush=True)


def _setup(args: argparse.Namespace) -> int:
    from pyjode.engines.julia import config, setup

    given = [args.julia, args.project, args.depot]
    if args.forget:
        if any(given):
            raise InputError("--forget goes with no other option")
        _say(f"{'forgotten' if config.forget() else 'there was nothing to forget'}: {config.config_file()}")
        return 0
    limit = 60.0 * args.time_limit
    if not (args.project or args.depot):
        location = setup.set_up(_say, limit, args.julia)
    elif args.julia and args.project:
        location = setup.set_up_registered(args.julia, args.project, args.depot, _say, limit)
    else:
        raise InputError("--project goes with --julia, and --depot with both: give them")
    _say(f"Julia {location.exe}, project {location.project} ({location.source})")
    if args.sysimage:
        setup.build_sysimage(location, _say, limit)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from pyjode.engines.julia import doctor

    report = doctor.examine(60.0 * args.time_limit)
    print(json.dumps(report, indent=2) if args.json else doctor.as_text(report))
    return 0 if report["works"] else 1


def _compare(args: argparse.Namespace) -> int:
    from pyjode.compare import command

    args.problem = args.problem or ["lorenz"]
    return command.run(args)


def _methods(args: argparse.Namespace) -> int:
    print(methods(kind=args.kind, engine=args.engine))
    return 0
