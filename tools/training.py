"""
The one training loop: seeded batches, a cosine schedule, checks on held-out pictures, checkpoints.

A step's batch depends on the seed and the number of the step alone. Nothing random has to be saved,
therefore, for a training that was killed to go on as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.errors import EdgeAppError, InputError

if TYPE_CHECKING:
    import keras

STATE_FILE = "state.npz"
# Between checkpoints. A checkpoint of an encoder takes a few hundredths of a second.
CHECKPOINT_S = 15.0


@dataclass
class Trained:
    """
    What a training came to.

    Attributes
    ----------
    history : list of dict
        Per step: ``step``, the model's logs, ``learning_rate``, ``seconds``; ``held_out`` at the
        steps that were checked.
    best_step : int
        The step whose weights the model has now; the last one where nothing was checked.
    best : float or None
        The held-out loss at that step.
    resumed_from : int
        Steps that an earlier process had done; 0 if none.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best: float | None = None
    resumed_from: int = 0


def learning_rate(peak: float, steps: int, warmup_steps: int = 0) -> Any:
    """
    A learning rate that falls from `peak` to nearly 0 along a half cosine.

    Parameters
    ----------
    peak : float
        The highest rate.
    steps : int
        Steps of the whole training.
    warmup_steps : int
        So many steps rise to the peak first, from a tenth of it.

    Returns
    -------
    keras.optimizers.schedules.CosineDecay

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    arXiv 1608.03983, without the restarts.
    """
    import keras

    schedule = keras.optimizers.schedules.CosineDecay
    if not warmup_steps:
        return schedule(peak, steps)
    return schedule(
        peak / 10, max(1, steps - warmup_steps), warmup_target=peak, warmup_steps=warmup_steps
    )


def jit_compile() -> bool:
    """
    Whether ``compile`` should ask for a just-in-time compiler on this backend of Keras.

    TensorFlow and torch spend more on compiling a few hundred steps on a CPU than they save; JAX
    without it runs a step operation by operation, a hundred times slower.
    """
    import keras

    return keras.backend.backend() == "jax"


def state_folder(target: Path, resume: bool) -> Path:
    """
    Where the checkpoint of a training is kept until its result is there: ``TARGET.unfinished``.

    Parameters
    ----------
    target : Path
        What the training makes.
    resume : bool
        Whether to go on with one that was stopped.

    Raises
    ------
    InputError
        If there is a checkpoint and it was not asked for, or the other way round.
    """
    state = target.with_name(f"{target.name}.unfinished")
    is_there = (state / STATE_FILE).is_file()
    if is_there and not resume:
        raise InputError(
            f"{state}: holds a training that was stopped; add --resume to go on with it, or "
            "remove the folder"
        )
    if resume and not is_there:
        raise InputError(f"--resume: {state} holds no checkpoint to go on from")
    return state


def discard(state: Path) -> None:
    """Remove a checkpoint, and its folder where nothing else is in it."""
    with suppress(OSError):
        (state / STATE_FILE).unlink()
        state.rmdir()


@contextmanager
def saying_how_to_go_on(state: Path) -> Iterator[None]:
    """Where the keyboard stops what is inside, name the checkpoint if there is one."""
    try:
        yield
    except KeyboardInterrupt:
        if not (state / STATE_FILE).is_file():
            raise
        raise KeyboardInterrupt(f"{state} holds the training: add --resume to go on") from None


def train(
    model: keras.Model,
    batch_at: Callable[[int], tuple[Any, Any]],
    steps: int,
    *,
    title: str,
    validate: Callable[[], float] | None = None,
    check_every: int = 25,
    patience: int | None = None,
    state: Path | None = None,
    settings: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    progress: bool = True,
) -> Trained:
    """
    Train a compiled model, in place.

    Parameters
    ----------
    model : keras.Model
        Compiled; on any backend of Keras.
    batch_at : callable
        The inputs and targets of a step, numbered from 1; the same for the same step, whatever
        was asked before. Called in another thread, one step ahead.
    steps : int
        How many.
    title : str
        Named in the progress bar and in errors.
    validate : callable, optional
        The loss on held-out pictures, lower is better. With it the model is left with the weights
        of the best check, and without with those of the last step.
    check_every : int
        Steps from one check to the next; the last step is checked too.
    patience : int, optional
        So many checks in a row that are no better than the best end the training. None never ends
        it early.
    state : Path, optional
        Folder for the checkpoint. If it holds one, training goes on from there.
    settings : dict, optional
        Whatever the training depends on; a checkpoint of other settings is refused.
    names : dict of str to str, optional
        Keras' names of the logs to those of the history, in its order; None keeps them all.
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    Trained

    Raises
    ------
    InputError
        If the loss is no number, or the checkpoint is damaged or of other settings.
    EdgeAppError
        If the checkpoint cannot be written; that of before is still there.
    """
    from tqdm import tqdm

    trained = Trained()
    best_weights: list[np.ndarray] | None = None
    # Its slots exist from the start, so that a checkpoint has a place for all of them.
    model.optimizer.build(model.trainable_variables)
    if state is not None and (state / STATE_FILE).is_file():
        best_weights = _load(state / STATE_FILE, model, trained, settings)
        trained.resumed_from = len(trained.history)
    saved_s = time.monotonic()
    first = len(trained.history) + 1
    stale = _stale(trained)
    with (
        # The next batch is made while this one is trained on: to change pictures takes a fifth to
        # a half of a step.
        ThreadPoolExecutor(1) as ahead,
        tqdm(total=steps, initial=first - 1, desc=title, unit="step", disable=not progress) as bar,
    ):
        batch = ahead.submit(batch_at, first) if first <= steps and stale != patience else None
        # One that had ended early is not gone on with.
        for step in range(first, steps + 1) if stale != patience else ():
            rate, began = float(model.optimizer.learning_rate), time.monotonic()
            # Keras averages its metrics until told to forget.
            model.reset_metrics()
            inputs, targets = batch.result()
            if step < steps:
                batch = ahead.submit(batch_at, step + 1)
            logs = model.train_on_batch(inputs, targets, return_dict=True)
            row = {"step": step, **_named(logs, names), "learning_rate": rate}
            _refuse_diverged(float(logs["loss"]), f"{title}, step {step}: the loss", state)
            row["seconds"] = round(time.monotonic() - began, 4)
            trained.history.append(row)
            if validate is not None and (step % check_every == 0 or step == steps):
                loss = float(validate())
                _refuse_diverged(loss, f"{title}, step {step}: the held-out loss", state)
                row["held_out"] = loss
                if trained.best is None or loss < trained.best:
                    trained.best, trained.best_step = loss, step
                    best_weights, stale = model.get_weights(), 0
                else:
                    stale += 1
            shown = {"loss": f"{float(logs['loss']):.4f}"}
            if trained.best is not None:
                shown["held_out"] = f"{trained.best:.4f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()
            is_last = step == steps or stale == patience
            is_due = step == 1 or time.monotonic() - saved_s >= CHECKPOINT_S
            if state is not None and (is_last or is_due):
                _save(state / STATE_FILE, model, trained, best_weights, settings)
                saved_s = time.monotonic()
            if is_last:
                break
    if best_weights is not None:
        model.set_weights(best_weights)
    else:
        trained.best_step = len(trained.history)
    return trained


def _refuse_diverged(loss: float, what: str, state: Path | None) -> None:
    if math.isfinite(loss):
        return
    if state is not None:
        # To go on from its checkpoint would end here again.
        discard(state)
    raise InputError(f"{what} is {loss}; training has diverged")


def _named(logs: dict[str, Any], names: dict[str, str] | None) -> dict[str, float]:
    if names is None:
        return {name: float(value) for name, value in logs.items()}
    return {ours: float(logs[name]) for name, ours in names.items()}


def _stale(trained: Trained) -> int:
    checks = [row["step"] for row in trained.history if "held_out" in row]
    return sum(step > trained.best_step for step in checks)


def _variables(model: keras.Model) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _save(
    path: Path,
    model: keras.Model,
    trained: Trained,
    best_weights: list[np.ndarray] | None,
    settings: dict[str, Any] | None,
) -> None:
    from keras import ops

    record = {
        "history": trained.history,
        "best_step": trained.best_step,
        "best": trained.best,
        "settings": settings,
    }
    arrays = {f"v{i}": ops.convert_to_numpy(v) for i, v in enumerate(_variables(model))}
    # The optimiser needs none of the best weights: it goes on from the last ones.
    arrays |= {f"b{i}": value for i, value in enumerate(best_weights or [])}
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, record=np.array(json.dumps(record)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        kept = "the one before it is kept"
        if not path.is_file():
            kept = "there is none before it"
            with suppress(OSError):
                path.parent.rmdir()
        raise EdgeAppError(
            f"{path}: the checkpoint of step {len(trained.history)} cannot be written "
            f"({error.strerror}); {kept}"
        ) from error


def _load(
    path: Path, model: keras.Model, trained: Trained, settings: dict[str, Any] | None
) -> list[np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            values = [file[f"v{i}"] for i in range(sum(name[0] == "v" for name in file.files))]
            best = [file[f"b{i}"] for i in range(sum(name[0] == "b" for name in file.files))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a whole checkpoint ({error}); remove its folder") from error
    # Compared as JSON keeps them: a tuple comes back as a list.
    asked = json.loads(json.dumps(settings))
    if record["settings"] != asked:
        raise InputError(f"{path}: {_difference(record['settings'], asked)}")
    variables = _variables(model)
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise InputError(f"{path}: holds another network; remove its folder")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    trained.history = record["history"]
    trained.best_step, trained.best = record["best_step"], record["best"]
    return best or None


def _difference(stored: dict[str, Any] | None, asked: dict[str, Any] | None) -> str:
    stored, asked = stored or {}, asked or {}
    for name in sorted({*stored, *asked}):
        if stored.get(name) != asked.get(name):
            return (
                f"the unfinished training had {name} {stored.get(name)!r}, now it is "
                f"{asked.get(name)!r}; go on with the same arguments, or remove its folder"
            )
    return "the unfinished training had other settings"
