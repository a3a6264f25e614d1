"""Julia as a guest in a Python process: Ctrl-C, threads, forks, exit. Each in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

pytestmark = pytest.mark.julia


def run(code, timeout=240):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout, check=False
    )


LONG = """
    import math, time, torch, pyjode
    torch.set_num_threads(1)
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    def f(t, y):
        return torch.stack([y[1], -k * y[0]])
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    def solve(end, n=2):
        return pyjode.odeint(f, y0, torch.linspace(0.0, end, n), rtol=1e-10, atol=1e-12, engine="julia",
                             options={"max_num_steps": 10**9})
    solve(1.0).sum().backward()
"""


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_ctrl_c_raises_keyboard_interrupt_within_a_second(stage):
    code = textwrap.dedent(LONG) + textwrap.dedent(
        """
        work = (lambda: solve(1e5)) if {forward} else (lambda: ys.sum().backward())
        if not {forward}:
            problem = pyjode.ODEProblem(f, y0, (0.0, 2000.0))
            ys = pyjode.solve(problem, "Tsit5", saveat=[2000.0], rtol=1e-10, atol=1e-12, rhs="traced", engine="julia",
                              maxiters=10**9).ys
        print("ready", flush=True)
        start = time.time()
        try:
            work()
            print("not interrupted")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print("right after:", abs(solve(1.0)[-1, 0].item() - math.cos(1.0)) < 1e-8)
        """
    ).format(forward=stage == "forward")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready", process.stderr.read()
    time.sleep(0.3)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().strip() == "interrupted"
    waited = time.time() - sent
    out, err = process.communicate(timeout=60)
    assert "right after: True" in out, err
    assert process.returncode == 0
    assert waited < 1.0


def test_solves_from_many_threads_are_right():
    result = run(
        LONG
        + """
    import gc, threading
    errors, grads = [], []
    def work(i):
        try:
            for _ in range(5):
                p = torch.tensor(1.0 + i, dtype=torch.float64, requires_grad=True)
                def g(t, y):
                    return -p * y
                ys = pyjode.odeint(g, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]), engine="julia")
                ys[-1].sum().backward()
                expected = -torch.exp(-p.detach())
                assert torch.allclose(p.grad, expected, rtol=1e-5), (p, p.grad)
                pyjode.engines.julia.runtime.julia_eval("GC.gc()")
        except BaseException as e:
            errors.append(e)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    work(9)
    [t.join() for t in threads]
    print("errors:", errors)
    """
    )
    assert "errors: []" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 0, result.stderr


def test_first_use_in_another_thread():
    result = run(
        """
        import threading, torch, pyjode
        def work():
            ys = pyjode.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), engine="julia")
            print(round(ys[-1].item(), 4))
        t = threading.Thread(target=work)
        t.start(); t.join()
        work()
        """
    )
    assert result.stdout.split() == ["0.3679", "0.3679"], result.stdout + result.stderr
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_a_clear_error_and_leaves_cleanly():
    result = run(
        LONG
        + """
    import os, sys
    pid = os.fork()
    if pid == 0:
        try:
            solve(1.0)
        except pyjode.EngineUnavailable as e:
            print("child:", "spawn" in str(e), flush=True)
        sys.exit(3)
    _, status = os.waitpid(pid, 0)
    print("status", os.waitstatus_to_exitcode(status), flush=True)
    print("parent", round(solve(1.0)[-1, 0].item(), 4))
    """
    )
    assert "child: True" in result.stdout, result.stdout + result.stderr
    assert "status 3" in result.stdout and "parent 0.5403" in result.stdout
    assert result.returncode == 0, result.stderr


def test_exit_is_clean_with_solutions_alive_and_after_an_uncaught_exception():
    result = run(LONG + "\n    keep = solve(1.0)\n    raise SystemExit(7)\n")
    assert result.returncode == 7 and result.stderr == "", result.stderr
    result = run(LONG + "\n    keep = solve(1.0)\n    1 / 0\n")
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr


def test_import_starts_no_julia():
    result = run(
        """
        import sys, time
        import torch
        start = time.perf_counter()
        import pyjode
        print("juliacall" in sys.modules, pyjode.__version__ is not None)
        """
    )
    assert result.stdout.split() == ["False", "True"], result.stderr
