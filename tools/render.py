"""
``python -m tools render``: the project's own metal nuts, as pictures with masks and as a clip.

The folder has the layout of MVTec AD, and ``train/empty`` beside it for the station without a part.
Everything follows from ``--seed``: the same seed gives the same pictures.

The pictures pass through the same video codec as the clip (unless ``--no-codec``). A model learned
from clean pictures and shown a compressed clip measures the codec: MPEG-4 takes away the sensor
noise and the finest marks of the steel, and every good part of the clip would look odd. A camera's
stream is coded too, so this is also the truer picture. All splits pass through it alike, so that it
tells nothing about defects.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from edge_app.arguments import seed
from edge_app.errors import InputError
from tools import nut
from tools.metal_part import DEFECTS, FINISHES, KINDS, Part, defective
from tools.shading import Appearance, Pose

# Of the codecs in OpenCV's wheels mp4v is the one to write .mp4 with: H.264 needs a library they
# lack, and VP9 took seven times the bytes for 1.6 dB at the only quality that can be had.
_FOURCC = "mp4v"
_STILL_FRAMES = 12
_MOVE_FRAMES = 9
_CLEAR_DRAWS = 8
_EMPTY_FRAMES = 4
# How often a view is shown to the codec before it is taken: the first frames are the coarser ones.
_CODEC_REPEATS = 3


@dataclass(frozen=True)
class ClipFrame:
    """One frame of the clip before it is drawn; `part` is None while the station is empty."""

    part: int | None
    pose: Pose
    appearance: Appearance
    still: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options to a parser.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.description = (
        "Draw metal nuts at an inspection station: good ones, seven kinds of defect with masks, the"
        " empty station, and a clip of nuts passing by with its truth. Layout of MVTec AD."
    )
    parser.epilog = "example:\n  python -m tools render --out data/nuts --seed 0"
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new or empty folder to write")
    add(
        "--train",
        type=int,
        default=200,
        metavar="N",
        help="good pictures to learn from (%(default)s)",
    )
    add(
        "--test-good",
        type=int,
        default=60,
        metavar="N",
        help="good pictures to test on (%(default)s)",
    )
    add(
        "--per-defect",
        type=int,
        default=15,
        metavar="N",
        help="pictures of each defect (%(default)s)",
    )
    add(
        "--empty",
        type=int,
        default=20,
        metavar="N",
        help="pictures of the empty station (%(default)s)",
    )
    add("--size", default="320x240", metavar="WxH", help="width x height in pixels (%(default)s)")
    add("--seed", type=seed, default=0, metavar="N", help="seed of everything drawn (%(default)s)")
    add(
        "--rotation",
        type=float,
        default=8.0,
        metavar="DEG",
        help="greatest rotation either way; 8 is a nut's play between the rails (%(default)s)",
    )
    add("--format", choices=("png", "jpeg"), default="png", help="of the pictures (%(default)s)")
    add("--clip-parts", type=int, default=12, metavar="N", help="parts in the clip (%(default)s)")
    add(
        "--fps",
        type=float,
        default=15.0,
        metavar="F",
        help="frames a second of the clip (%(default)s)",
    )
    add("--no-clip", action="store_true", help="pictures only")
    add("--no-codec", action="store_true", help="keep the pictures as the sensor gives them")
    add(
        "--classes",
        action="store_true",
        help="instead: folders <kind>_<finish> of good parts, to train an encoder on",
    )
    add(
        "--per-class",
        type=int,
        default=200,
        metavar="N",
        help="pictures of each class (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """
    Write the pictures.

    Parameters
    ----------
    args : argparse.Namespace
        The options added by `configure`.

    Returns
    -------
    int
        0.

    Raises
    ------
    InputError
        If an option makes no sense or the folder cannot be written or is not empty.
    """
    size = _parse_size(args.size)
    for name in ("train", "test_good", "per_defect", "empty", "clip_parts", "per_class"):
        if getattr(args, name) < 0:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option}: got {getattr(args, name)}, want 0 or more.")
    if not 1 <= args.fps <= 240:
        raise InputError(f"--fps: got {args.fps:g}, want 1 to 240 frames a second.")
    if not 0 <= args.rotation <= 180:
        raise InputError(f"--rotation: got {args.rotation:g}, want 0 to 180 degrees.")
    _make_folder(args.out)
    if args.classes:
        render_classes(args.out, args.per_class, size, args.seed, args.format)
        return 0
    counts = {"train/good": args.train, "train/empty": args.empty, "test/good": args.test_good}
    counts |= {f"test/{defect}": args.per_defect for defect in DEFECTS}
    station = nut.make_station(np.random.default_rng([args.seed, 0]), size)
    render_pictures(
        args.out, station, counts, args.seed, args.rotation, args.format, not args.no_codec
    )
    if not args.no_clip:
        render_clip(args.out, station, args.clip_parts, args.fps, args.seed, args.rotation)
    return 0


def render_pictures(
    out: Path,
    station: nut.Station,
    counts: dict[str, int],
    seed: int,
    rotation_deg: float,
    file_format: str,
    codec: bool,
) -> None:
    """
    Write the folders of pictures and the masks of the defects.

    Parameters
    ----------
    out : Path
        Existing folder.
    station : nut.Station
    counts : dict of str to int
        Pictures per folder, such as ``{"train/good": 200, "test/crack": 15}``.
    seed : int
        Each folder has its own stream from it: one count changes no other folder's pictures.
    rotation_deg : float
        Greatest absolute rotation, degrees.
    file_format : str
        ``"png"`` or ``"jpeg"``.
    codec : bool
        Whether the pictures pass through the clip's codec.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    suffix = ".png" if file_format == "png" else ".jpg"
    progress = tqdm(total=sum(counts.values()), desc="render", unit="picture", delay=2)
    with progress, tempfile.TemporaryDirectory() as scratch:
        for stream, (name, count) in enumerate(counts.items()):
            rng = np.random.default_rng([seed, 1, stream])
            label = name.split("/")[1]
            defect = label if label in DEFECTS else None
            for number in range(count):
                light, mask = nut.draw_view(
                    rng, station, defect, part_present=label != "empty", rotation_deg=rotation_deg
                )
                if codec:
                    picture = _through_codec(light, rng, Path(scratch) / "view.mp4")
                else:
                    picture = nut.expose(light, rng)
                _write(out / name / f"{number:03d}{suffix}", picture)
                if defect:
                    _write(out / "ground_truth" / defect / f"{number:03d}_mask.png", mask)
                progress.update()


def render_classes(
    out: Path, per_class: int, size: tuple[int, int], seed: int, file_format: str
) -> None:
    """
    Write one folder of good pictures for each kind and finish of part.

    Parameters
    ----------
    out : Path
        Existing folder.
    per_class : int
        Pictures in each folder.
    size : tuple of int
        Height and width in pixels.
    seed : int
    file_format : str
        ``"png"`` or ``"jpeg"``.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    suffix = ".png" if file_format == "png" else ".jpg"
    classes = [(kind, finish) for kind in KINDS for finish in FINISHES]
    with tqdm(total=len(classes) * per_class, desc="render", unit="picture", delay=2) as progress:
        for stream, (kind, finish) in enumerate(classes):
            rng = np.random.default_rng([seed, 3, stream])
            for number in range(per_class):
                picture = nut.draw_part(rng, kind, finish, size)
                _write(out / f"{kind}_{finish}" / f"{number:03d}{suffix}", picture)
                progress.update()


def render_clip(
    out: Path, station: nut.Station, parts: int, fps: float, seed: int, rotation_deg: float
) -> None:
    """
    Write ``clip.mp4``, nuts carried past the station, and ``clip.json``, what they are.

    The belt moves by half its pitch at a time, so that each part at rest is followed by an empty
    station at rest. About two parts in five are defective, by any defect but the missing nut: in a
    clip an empty station is no defect. A clip is made to be watched, so its defects are clear ones:
    the faint ones are in ``test/``.

    ``clip.json`` holds ``fps``, ``width``, ``height``, ``frames``, ``seed`` and ``parts``, each
    with ``part`` (from 1), ``first_frame`` and ``last_frame`` in which any of it is seen,
    ``still_first_frame`` and ``still_last_frame`` in which it rests at the station (all from 0,
    inclusive), and ``defect`` or null.

    Parameters
    ----------
    out : Path
        Existing folder.
    station : nut.Station
    parts : int
        Number of parts.
    fps : float
        Frames a second.
    seed : int
    rotation_deg : float
        Greatest absolute rotation, degrees.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    rng = np.random.default_rng([seed, 2])
    defects = _clip_defects(rng, parts)
    good = Part(finish=station.finish)
    drawn = [_clear(rng, station, good, defect) if defect else good for defect in defects]
    frames = list(_clip_frames(rng, station, parts, rotation_deg))
    seen: dict[int, list[int]] = {}
    still: dict[int, list[int]] = {}
    light = None
    path = out / "clip.mp4"
    with _writer(path, station.size, fps) as write:
        for number, frame in enumerate(tqdm(frames, desc="clip", unit="frame", delay=2)):
            # at rest only the noise changes
            if light is None or frame != frames[number - 1]:
                part = None if frame.part is None else drawn[frame.part]
                light, outline = nut.draw_light(station, part, frame.pose, frame.appearance)
            write(nut.expose(light, rng))
            if outline.any():
                seen.setdefault(frame.part, []).append(number)
                if frame.still:
                    still.setdefault(frame.part, []).append(number)
    truth = {
        "fps": fps,
        "width": station.size[1],
        "height": station.size[0],
        "frames": len(frames),
        "seed": seed,
        "parts": [
            {
                "part": index + 1,
                "first_frame": seen[index][0],
                "last_frame": seen[index][-1],
                "still_first_frame": still[index][0],
                "still_last_frame": still[index][-1],
                "defect": defect,
            }
            for index, defect in enumerate(defects)
        ],
    }
    (out / "clip.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def _clip_defects(rng: np.random.Generator, parts: int) -> list[str | None]:
    """Two parts in five are defective; each defect comes once before any comes twice."""
    kinds = [defect for defect in DEFECTS if defect != "missing_nut"]
    count = round(0.4 * parts)
    defects: list[str | None] = [None] * parts
    order = [kinds[i] for _ in range(count // len(kinds) + 1) for i in rng.permutation(len(kinds))]
    for place, defect in zip(rng.permutation(parts)[:count], order, strict=False):
        defects[place] = defect
    return defects


def _clear(rng: np.random.Generator, station: nut.Station, good: Part, defect: str) -> Part:
    """Of several parts with a defect the one whose picture it alters most."""
    look = nut.random_appearance(rng, station)
    clean, _ = nut.draw_light(station, good, Pose(), look)
    drawn = [defective(rng, good, defect) for _ in range(_CLEAR_DRAWS)]

    def change(part: Part) -> float:
        light, _ = nut.draw_light(station, part, Pose(), look)
        return float(np.abs(light - clean).sum())

    return max(drawn, key=change)


def _clip_frames(
    rng: np.random.Generator, station: nut.Station, parts: int, rotation_deg: float
) -> Iterator[ClipFrame]:
    """The clip's frames in order: empty, then for each part: in, at rest, out, empty."""
    # half a pitch takes the part out of the picture with room to spare
    half_pitch_px = round(0.72 * station.size[1] + 1.3 * station.apothem_px)
    ease = [0.5 - 0.5 * np.cos(np.pi * i / _MOVE_FRAMES) for i in range(_MOVE_FRAMES + 1)]
    belt_px = 0
    empty = nut.random_appearance(rng, station)
    for _ in range(_EMPTY_FRAMES):
        yield ClipFrame(None, Pose(), replace(empty, belt_px=belt_px), True)
    for index in range(parts):
        rest = nut.random_pose(rng, station, rotation_deg)
        look = nut.random_appearance(rng, station)
        for start_px, frames in ((-half_pitch_px, _STILL_FRAMES), (0, _EMPTY_FRAMES)):
            for before, after in zip(ease[:-1], ease[1:], strict=True):
                offset_px = round(start_px + half_pitch_px * after)
                moved_px = half_pitch_px * (after - before)
                # the shutter is open for a twelfth of a frame
                moving = replace(
                    look,
                    belt_px=belt_px + offset_px - start_px,
                    motion_px=1 + 2 * round(moved_px / 24),
                )
                pose = replace(rest, x_px=rest.x_px + offset_px)
                yield ClipFrame(index, pose, moving, False)
            belt_px += half_pitch_px
            part = index if start_px else None
            for _ in range(frames):
                yield ClipFrame(part, rest, replace(look, belt_px=belt_px), True)


@contextmanager
def _writer(
    path: Path, size: tuple[int, int], fps: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Open a video file for frames of one size, and give the function that writes one."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*_FOURCC), fps, (size[1], size[0]))
    if not video.isOpened():
        raise InputError(f"{path}: cannot write a video here; want a writable folder.")
    try:
        yield video.write
    finally:
        video.release()


def _through_codec(light: np.ndarray, rng: np.random.Generator, path: Path) -> np.ndarray:
    """One view after `_CODEC_REPEATS` frames of it in a video of its own, written to `path`."""
    # in one video for all, the encoder's rate control would make the first pictures the sharpest,
    # and a folder of 15 defects could be told from a folder of 60 good ones by that
    with _writer(path, light.shape[:2], 15.0) as write:
        for _ in range(_CODEC_REPEATS):
            write(nut.expose(light, rng))
    video = cv2.VideoCapture(str(path))
    for _ in range(_CODEC_REPEATS):
        _, picture = video.read()
    video.release()
    return picture


def _parse_size(text: str) -> tuple[int, int]:
    """Height and width from ``WIDTHxHEIGHT``."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"--size: got {text!r}, want WIDTHxHEIGHT such as 320x240.")
    size = int(height), int(width)
    if min(size) < 64 or max(size) > 4096 or size[0] % 2 or size[1] % 2:
        raise InputError(f"--size: got {text!r}, want even numbers from 64 to 4096.")
    return size


def _make_folder(out: Path) -> None:
    """Make the output folder, refusing one that holds anything."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"--out: {out} is not empty; want a new or an empty folder.")
    except OSError as error:
        raise InputError(f"--out: cannot make the folder {out}: {error.strerror}.") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out: cannot write in {out}; want a writable folder.")


def _write(path: Path, picture: np.ndarray) -> None:
    """Write one picture, making its folder."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, picture, quality)[1].tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot write the picture: {error.strerror}.") from error
