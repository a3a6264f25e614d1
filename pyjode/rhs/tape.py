"""A tape of our own, on which the caller's ``saved_tensors_hooks`` have no business."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def plain_tape() -> contextlib.AbstractContextManager[Any]:
    """Keeps the caller's ``saved_tensors_hooks`` (torch.utils.checkpoint's, for example) off a tape of our own.

    Nothing where there are none: torch.func's transforms, which f may use, refuse to run under any hooks.
    """
    if not _hooks_are_set():
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_itself, _itself)


def _hooks_are_set() -> bool:
    top = torch._C._autograd._top_saved_tensors_default_hooks
    try:
        return top(True) is not None
    except TypeError:  # older torch: no argument
        return top() is not None  # type: ignore[call-arg]


def _itself(x: Any) -> Any:
    return x
