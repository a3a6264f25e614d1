"""Hashes worked out once: the same as before, and not carried into another process."""

import pickle
import subprocess
import sys
from dataclasses import dataclass

import torch

from pyjode.hash_once import hash_once
from pyjode.methods import find_method
from pyjode.state import StateLayout


class Counted:
    """Equal to its like; counts how often it is hashed."""

    def __init__(self):
        self.count = 0

    def __hash__(self):
        self.count += 1
        return 7


def test_the_hash_is_that_of_the_dataclass_and_worked_out_once():
    @dataclass(frozen=True)
    class Plain:
        x: object

    @hash_once
    @dataclass(frozen=True)
    class Once:
        x: object

    x = Counted()
    assert hash(Once(x)) == hash(Plain(x))
    x.count = 0
    once = Once(x)
    assert hash(once) == hash(once)
    assert x.count == 1


def test_a_pickled_key_finds_its_like_in_another_process():
    """Hashes of strings differ from process to process."""
    keys = (find_method("Tsit5"), StateLayout.of({"a": torch.ones(2), "b": torch.ones(3)}))
    for key in keys:
        hash(key)
    code = (
        "import pickle, sys, torch; from pyjode.methods import find_method; from pyjode.state import StateLayout;"
        "method, layout = pickle.load(sys.stdin.buffer);"
        "assert {find_method('Tsit5'): 1}[method] == 1;"
        "assert {StateLayout.of({'a': torch.ones(2), 'b': torch.ones(3)}): 1}[layout] == 1"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(keys), check=True)
