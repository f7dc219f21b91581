"""
The one place that imports a TFLite runtime.

ai-edge-litert is tried first, then its predecessor tflite-runtime. Whether a runtime works is found
out by *building an interpreter*: tflite-runtime 2.14 imports happily beside numpy 2 and raises
``SystemError`` only when the first interpreter is made.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge_app.errors import BundleError, EdgeAppError

RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class RuntimeMissing(EdgeAppError):
    """No TFLite runtime on this machine can build an interpreter."""


def open_interpreter(model: bytes, threads: int = 1, runtime: str | None = None) -> Any:
    """
    Build an interpreter for a TFLite model, tensors allocated.

    Parameters
    ----------
    model : bytes
        The content of a ``.tflite`` file. Bytes rather than a path, so that what runs is exactly
        what was hashed.
    threads : int
        Threads of the CPU kernels, at least 1.
    runtime : str, optional
        Name of the runtime's module; by default the first of `RUNTIMES` that works.

    Returns
    -------
    interpreter
        With `get_input_details`, `set_tensor`, `invoke`, `get_tensor` and an attribute
        `runtime_name`.

    Raises
    ------
    RuntimeMissing
        If no runtime is installed, or each one that is fails to start.
    BundleError
        If a runtime is there but refuses the model.
    """
    failures = []
    for module_name in (runtime,) if runtime else RUNTIMES:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            failures.append(f"{module_name}: {error}")
            continue
        try:
            with _quiet():
                interpreter = module.Interpreter(model_content=model, num_threads=threads)
        except SystemError as error:
            # The sign of tflite-runtime 2.14 beside numpy 2; the model is not at fault.
            failures.append(f"{module_name}: {error}, which it does when numpy is 2 or newer")
            continue
        except (ValueError, RuntimeError) as error:
            raise BundleError(
                f"{module_name} refuses the TFLite model: {_first_line(error)}"
            ) from None
        try:
            with _quiet():
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BundleError(
                f"{module_name} cannot run the TFLite model: {_first_line(error)}"
            ) from None
        return _Named(interpreter, module_name.partition(".")[0])
    raise RuntimeMissing(
        "no TFLite runtime works on this machine (" + "; ".join(failures) + "); "
        "install ai-edge-litert, or tflite-runtime with numpy below 2"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """
    Keep the runtime's C++ code from writing to stderr.

    It announces its delegate there at every start, past Python, and has no switch for it. What it
    has to say about a model that fails also comes as an exception.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class _Named:
    """An interpreter that knows which runtime built it; everything else goes straight through."""

    def __init__(self, interpreter: Any, runtime_name: str) -> None:
        self._interpreter = interpreter
        self.runtime_name = runtime_name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)
