"""
Compare: every method of the articles, and our own default, on the same pictures.

Each method is fitted on the good pictures of a set, once for each seed where chance enters, and
judged on its test split by the same evaluation. What it came to is kept in --out, run by run:
called again the command goes on where it was, and what is done is only read. The table, the CSV and
the page are made anew each time from all that --out holds, whatever was asked for this time.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2

from edge_app.align import Alignment
from edge_app.arguments import refuse_unwritable, seed, whole_from_1
from edge_app.enrol import ALIGN_PICTURES, choose_alignment
from edge_app.errors import EdgeAppError, InputError
from edge_app.records import Frame
from edge_app.sources.folder import printable, read_picture
from tools.compare_run import Run, carry_out, done, kept
from tools.inspection_set import (
    InspectionSet,
    read_inspection_set,
    refuse_one_sided,
)
from tools.methods import Aligners, Part, View
from tools.report_html import count

ALIGNMENTS = ("auto", "none")
LOCK = ".lock"
# Starts a run and says, some time, why it could not be carried out, or None.
Start = Callable[[Run], "Future[str | None]"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    from tools.methods.registry import METHODS

    parser.description = __doc__
    parser.epilog = (
        "methods:\n"
        + "\n".join(f"  {name:18} {method.title}" for name, method in METHODS.items())
        + "\n\nexample:\n  python -m tools compare --data parts/nut parts/bracket "
        "--weights imagenet \\\n    --reference-data fashion_mnist --out compared"
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="sets in the layout of MVTec AD",
    )
    add("--methods", nargs="+", default=list(METHODS), metavar="M", help="which (default: all)")
    add("--seeds", type=seed, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    add(
        "--align",
        nargs="+",
        choices=ALIGNMENTS,
        default=["auto"],
        help="auto: every method sees the part as our alignment cuts it out, where the good "
        "pictures agree better so; none: the whole picture; both may be named",
    )
    add(
        "--weights",
        required=True,
        metavar="W",
        help="ImageNet weights of MobileNetV2: a .weights.h5 file, or 'imagenet' (downloads)",
    )
    add(
        "--other-weights",
        type=Path,
        metavar="FILE",
        help="ImageNet weights of EfficientNet-B0 (without them it is left out)",
    )
    add(
        "--reference-data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="labelled pictures for DOC and triplets, as of train-encoder",
    )
    add(
        "--leave-out",
        type=int,
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes of the reference data that are the part or its defects (default: none)",
    )
    add(
        "--budget",
        type=_minutes,
        metavar="MINUTES",
        help="begin no further run after so long; the same command goes on later (default: none)",
    )
    add(
        "--jobs",
        type=whole_from_1,
        default=1,
        metavar="N",
        help="runs at a time, each on its share of the cores; the milliseconds are then taken "
        "beside other work",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="results, table and page")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted minutes from 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Compare; see the module's docstring."""
    from tools.check_data import warn
    from tools.methods.registry import METHODS

    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        raise InputError(f"--methods {unknown[0]}: wanted some of {', '.join(METHODS)}")
    refuse_unwritable(args.out / "table.csv")
    if args.weights != "imagenet" and not Path(args.weights).is_file():
        raise InputError(f"--weights {args.weights}: no such file, wanted one or 'imagenet'")
    for path in args.reference_data:
        if not path.exists():
            raise InputError(f"--reference-data {printable(path)}: no such folder")
    if args.other_weights is None:
        without = [name for name in args.methods if METHODS[name].needs_other_weights]
        args.methods = [name for name in args.methods if name not in without]
        for name in without:
            print(f"{name} is left out: it needs --other-weights")
    for data_dir in args.data:
        refuse_one_sided(read_inspection_set(data_dir))
        warn(data_dir)
    with _alone_in(args.out):
        return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from tools.compare_report import write_all

    runs = list(planned(args))
    waiting = [one for one in runs if done(one) is None]
    budget_s = math.inf if args.budget is None else args.budget * 60
    with tqdm(
        total=len(runs),
        initial=len(runs) - len(waiting),
        unit="run",
        desc="comparing",
        delay=2,
        leave=False,
    ) as bar:
        failed = carry_out_all(waiting, args.jobs, budget_s, bar)
    outcomes = kept(args.out)
    if not outcomes:
        raise InputError(
            failed[0] if failed else "--budget: nothing was done before, and no time for anything"
        )
    write_all(args.out, outcomes, args.typed)
    took_s = sum(outcome.fit_s + outcome.judge_s for outcome in outcomes)
    print(f"{count(len(outcomes), 'run')}, {took_s / 3600:.1f} hours of one process together")
    for sentence in failed:
        print(f"not compared: {sentence}")
    if waiting:
        print(f"{len(waiting)} of {len(runs)} runs are left: the same command goes on with them")
    return 0


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """See that no other command works on the same runs; the lock goes with the process."""
    with open(folder / LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--out {printable(folder)}: another compare works there; wait for it, or name "
                "another folder"
            ) from None
        yield


def carry_out_all(waiting: list[Run], jobs: int, budget_s: float, bar: Any) -> list[str]:
    """
    Carry out runs, some at a time, until the time is over.

    Parameters
    ----------
    waiting : list of Run
        What is begun is taken out of it.
    jobs : int
        How many at a time: 1 in this process, more in so many others, each with its share of the
        cores.
    budget_s : float
        Seconds after which nothing further is begun.
    bar : tqdm
        Moved on by each run.

    Returns
    -------
    list of str
        A sentence for each run that could not be carried out: one method that cannot be fitted does
        not take the others' table away.

    Raises
    ------
    EdgeAppError
        If one of the processes ended by itself.
    """
    over_s = time.monotonic() + budget_s
    flying: dict[Future[str | None], Run] = {}
    failed = []
    with _at_once() if jobs == 1 else _processes(jobs) as start:
        while waiting or flying:
            while waiting and len(flying) < jobs and time.monotonic() < over_s:
                one = waiting.pop(0)
                bar.set_postfix_str(f"{one.part.name}, {one.method.name}, seed {one.seed}")
                flying[start(one)] = one
            if not flying:
                break
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                del flying[future]
                sentence = future.result()
                if sentence is not None:
                    failed.append(sentence)
                bar.update()
    return failed


def _sentence_of(one: Run, progress: bool = True) -> str | None:
    """Carry out a run; why it could not be, or None."""
    try:
        carry_out(one, progress)
    except EdgeAppError as error:
        return f"{one.part.name}, {one.method.name}: {error}"
    finally:
        # Each method reads and aligns for itself: its time is its own, and no picture of a large
        # set is held for the next.
        for view in one.part.good:
            view.forget()
    return None


@contextmanager
def _at_once() -> Iterator[Start]:
    """Runs in this process, each over when it has been started."""

    def start(one: Run) -> Future[str | None]:
        future: Future[str | None] = Future()
        future.set_result(_sentence_of(one))
        return future

    yield start


@contextmanager
def _processes(jobs: int) -> Iterator[Start]:
    """
    Runs in processes that share the cores among them and draw no bars into each other's.

    They are spawned, as TensorFlow does not survive a fork, and read their threads from the
    environment when they import it. Whatever ends this command, by an error, Control-C or a signal,
    ends them too, and what they have started.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    shared = {name: os.environ.get(name, threads) for name in names} | {"TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in shared}
    os.environ.update(shared)
    try:
        with ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), _begin_process, (int(threads),)
        ) as pool:
            try:
                yield lambda one: pool.submit(_in_process, one)
            except BaseException:
                # Leaving the pool waits for its runs: minutes, in which nothing would be said.
                for process in multiprocessing.active_children():
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGTERM)
                raise
    except BrokenProcessPool:
        raise EdgeAppError(
            f"a process of --jobs {jobs} ended by itself, for want of memory perhaps: the same "
            "command goes on, with fewer jobs where it was memory"
        ) from None
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin_process(threads: int) -> None:
    cv2.setNumThreads(threads)
    # A group of its own, with what it starts: Control-C is the command's to hear.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def end_with_the_command() -> None:
        multiprocessing.parent_process().join()
        os.killpg(0, signal.SIGTERM)

    threading.Thread(target=end_with_the_command, daemon=True).start()


def _in_process(one: Run) -> str | None:
    try:
        return _sentence_of(one, progress=False)
    except SystemExit:
        # The pool would take it for a result and wait for more work.
        os._exit(1)


def planned(args: argparse.Namespace) -> Iterator[Run]:
    """All runs, the first seed of everything before the second, so that a table is there early."""
    from tools.methods.registry import METHODS

    digest = _weights_digest(args.weights)
    parts = []
    for data_dir in args.data:
        inspection_set = read_inspection_set(data_dir)
        for alignment in args.align:
            part = _part(args, inspection_set, data_dir, alignment)
            if alignment == "auto" and part.alignment.recipe == "none" and "none" in args.align:
                continue  # it would be the same once more
            settings = {
                "data": _set_digest(inspection_set),
                "weights": digest,
                "alignment": part.alignment.recipe,
                "reference": sorted(printable(path.name) for path in part.reference),
                "leave_out": list(part.leave_out),
            }
            parts.append((part, inspection_set, settings))
    for number, seed_ in enumerate(args.seeds):
        for part, inspection_set, settings in parts:
            for name in args.methods:
                method = METHODS[name]()
                if number and not method.chance:
                    continue
                recipe = part.alignment.recipe
                folder = args.out / part.name / recipe / name / f"seed_{seed_}"
                yield Run(part, recipe, inspection_set, method, seed_, folder, settings)


def _part(
    args: argparse.Namespace, inspection_set: InspectionSet, data_dir: Path, alignment: str
) -> Part:
    paths = inspection_set.train_good
    step = max(1, -(-len(paths) // ALIGN_PICTURES))
    frames = [Frame(i, str(path), read_picture(path)) for i, path in enumerate(paths[::step])]
    recipe: Alignment = choose_alignment(
        frames, None, "none" if alignment == "none" else None
    ).alignment
    aligners = Aligners(recipe)
    own = data_dir.resolve()
    return Part(
        printable(inspection_set.name),
        data_dir,
        tuple(View(path, aligners) for path in paths),
        recipe,
        args.weights if args.weights == "imagenet" else Path(args.weights),
        tuple(path for path in args.reference_data if path.resolve() != own),
        tuple(args.leave_out),
        args.other_weights,
        any(picture.mask_path for picture in inspection_set.test),
    )


def _weights_digest(weights: str) -> str:
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(weights)


def _set_digest(inspection_set: InspectionSet) -> str:
    """Of names and sizes of all pictures: other pictures are another comparison."""
    paths = [*inspection_set.train_good, *(picture.path for picture in inspection_set.test)]
    lines = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in paths]
    content = "\n".join(lines).encode("utf-8", "backslashreplace")
    return hashlib.sha256(content).hexdigest()
