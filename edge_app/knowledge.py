"""
What a live session knows of the part, and how it comes to know more.

A `Knowledge` is frozen. Each function here takes one and gives the next, through the same
`gather` and `learn` as ``enroll``: what is written is what ``enroll`` would have written.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_app.align import Aligner, Alignment, read_alignment
from edge_app.bundle import Bundle, made_now, write_bundle
from edge_app.config import EnrollConfig
from edge_app.encoder import Encoder
from edge_app.enrol import (
    ALIGN_PICTURES,
    LEAST_IMAGES,
    Encodings,
    Gathered,
    choose_alignment,
    fixed_limits,
    gather,
    kept_pictures,
    known_pictures,
    learn,
    learnt_manifest,
    quality_section,
    settings_of,
    usable_maps,
)
from edge_app.errors import InputError
from edge_app.learn_neighbours import ScorerSettings
from edge_app.learn_patches import affordable_bytes, default_settings
from edge_app.learnt_pictures import FALSE_ALARM, GOOD, LearntPicture
from edge_app.manifest import canonical_sha256
from edge_app.preprocess import Preprocessing
from edge_app.presence import EmptyView, empty_view_of
from edge_app.quality import Limits, read_limits
from edge_app.records import Frame

Region = tuple[float, float, float, float] | None
# Told of each stage of the learning: what is being done, how much of it, of how much.
Progress = Callable[[str, int, int], None]
# An empty view widens its place to where the parts lie; this one has none yet.
_NO_PLACE = (1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Knowledge:
    """
    What the session knows.

    Attributes
    ----------
    bundle : Bundle
        In memory, written or not; its `reference` is None where no part is known.
    pictures : tuple of LearntPicture, or None
        What it learnt; None where they are still in the bundle's file.
    region : tuple of float or None
        Region of interest; differs from the bundle's while the reference is stale.
    batches : tuple of int
        Numbers of the lots of frames of this session that it was taught, in order.
    empties : tuple of Frame
        Frames of this session that were said to show the station without a part.
    taught : tuple of str
        What was done to it since it was read or written, for the record; the keys' actions.
    """

    bundle: Bundle
    pictures: tuple[LearntPicture, ...] | None
    region: Region
    batches: tuple[int, ...] = ()
    empties: tuple[Frame, ...] = ()
    taught: tuple[str, ...] = ()

    @property
    def knows_part(self) -> bool:
        """Whether there is a reference, and it is of this region."""
        return self.bundle.reference is not None and self.region == self.bundle.region

    @property
    def size(self) -> int:
        """Pictures in the reference."""
        return len(self.bundle.reference["image_ids"]) if self.knows_part else 0


def known_from(bundle: Bundle) -> Knowledge:
    """What a bundle knows."""
    return Knowledge(bundle, None if bundle.reference is not None else (), bundle.region)


def pictures_of(knowledge: Knowledge) -> tuple[LearntPicture, ...]:
    """
    The pictures that it learnt, read from the bundle if they have not been yet.

    Raises
    ------
    InputError
        If the bundle does not hold them all: then it cannot be learnt on.
    """
    if knowledge.pictures is not None:
        return knowledge.pictures
    bundle = knowledge.bundle
    pictures = known_pictures(bundle)
    if pictures is None:
        raise InputError(
            f"{bundle.path.name} does not hold the pictures it learnt: press l to learn anew"
        )
    return tuple(pictures)


def limits_stay(knowledge: Knowledge) -> str:
    """What a person must know who takes the last picture out: that its limits stay."""
    limits = knowledge.bundle.manifest["quality"]
    if limits and pictures_of(knowledge)[-1].measures is None:
        return "; the limits of light and sharpness stay"
    return ""


def forgotten(knowledge: Knowledge) -> str:
    """What a person must know before more is learnt: that not all it learnt was kept."""
    kept = len(pictures_of(knowledge))
    if kept == knowledge.size:
        return ""
    return f" ({knowledge.bundle.path.name} kept {kept} of its {knowledge.size}, only these count)"


def knows_empty(knowledge: Knowledge) -> bool:
    """Whether it can tell that no part is in view."""
    manifest = knowledge.bundle.manifest
    return manifest["presence"] is not None or manifest["alignment"]["recipe"] != "none"


class Teacher:
    """
    Learns, with an encoder of its own; one thread uses it.

    Parameters
    ----------
    encoder : Encoder
        That reads all of the bundle's maps.
    settings : EnrollConfig
    """

    def __init__(self, encoder: Encoder, settings: EnrollConfig) -> None:
        self._encoder = encoder
        self._settings = settings

    def anew(
        self,
        knowledge: Knowledge,
        frames: Sequence[Frame],
        empty_frames: Sequence[Frame],
        batches: tuple[int, ...],
        what: str,
        progress: Progress,
    ) -> tuple[Knowledge, list[str]]:
        """
        Learn a part from scratch; what the bundle knew of parts is forgotten.

        An empty view is kept where the region is: the station stays what it is.

        Returns
        -------
        knowledge : Knowledge
        skipped : list of str
            One sentence for each frame that could not be learnt.

        Raises
        ------
        InputError
            If the frames do not suffice.
        """
        bundle, region = knowledge.bundle, knowledge.region
        settings = ScorerSettings(
            self._settings.scorer, self._settings.neighbours, self._settings.feature_scaling
        )
        shapes = self._encoder.map_shapes
        patches = default_settings(shapes, usable_maps(shapes), self._most_bytes(bundle))
        progress("finding the part", 0, len(frames))
        step = max(1, -(-len(frames) // ALIGN_PICTURES))
        chosen = choose_alignment(frames[::step], region, None, empty_frames)
        alignment = chosen.alignment
        empty_view = None
        if alignment.recipe == "none" and not empty_frames and region == bundle.region:
            empty_view = empty_view_of(bundle) if bundle.reference is not None else None
        if empty_view is not None:
            empty_view = replace(empty_view, place=_NO_PLACE)
        gathered = gather(
            frames,
            Aligner(alignment, bundle.size, region),
            Preprocessing(bundle.size, region),
            empty_frames if alignment.recipe == "none" else (),
            empty_view,
            progress=lambda count: progress("cutting out", count, len(frames)),
            views=chosen.views,
        )
        taught = _Lesson(gathered.pictures, alignment, gathered.empty_view, None, gathered)
        rate = self._settings.false_reject_rate
        # A decoder redraws the part it was trained on and no other.
        learnt = self._learn(knowledge, taught, settings, patches, rate, False, progress)
        return replace(learnt, batches=batches, taught=(*knowledge.taught, what)), gathered.skipped

    def more(
        self, knowledge: Knowledge, frame: Frame, alarm: bool, batch: int, progress: Progress
    ) -> Knowledge:
        """
        Learn one more good frame; `alarm`, if it had been called NG.

        One that the device would refuse, being too dark or blurred beside those learnt, is not
        learnt, as in ``enroll --add``.

        Raises
        ------
        InputError
            Saying why it cannot be learnt.
        """
        bundle, region = knowledge.bundle, knowledge.region
        known = pictures_of(knowledge)
        alignment = read_alignment(bundle.manifest["alignment"], bundle.reference)
        kind = FALSE_ALARM if alarm else GOOD
        before = bundle.manifest["quality"]
        try:
            gathered = gather(
                [frame],
                Aligner(alignment, bundle.size, region),
                Preprocessing(bundle.size, region),
                (),
                empty_view_of(bundle),
                known,
                kind,
                read_limits(before),
            )
        except InputError as error:
            why = _why(str(error))
            if why.startswith("quality:"):
                why += ": mend light or focus, or press l to learn anew in this light"
            raise InputError(why) from None
        # A reference from before there were limits has none: one picture cannot give them.
        measured = None if before is None else gathered
        pictures = [*known, *gathered.pictures]
        fixed = _fixed(bundle, known)
        lesson = _Lesson(pictures, alignment, gathered.empty_view, fixed, measured)
        learnt = self._relearn(knowledge, lesson, progress)
        return replace(
            learnt,
            batches=(*knowledge.batches, batch),
            taught=(*knowledge.taught, "n"),
        )

    def without_last(self, knowledge: Knowledge, progress: Progress) -> tuple[Knowledge, str]:
        """
        Take out the last picture that the bundle learnt; also gives its id.

        The limits of light and sharpness are those of the pictures that remain, unless the bundle
        did not keep what this one had measured: see `limits_stay`.

        Raises
        ------
        InputError
            If too few would be left.
        """
        bundle, known = knowledge.bundle, pictures_of(knowledge)
        if len(known) <= LEAST_IMAGES:
            raise InputError(
                f"nothing to undo: {LEAST_IMAGES} pictures are the least to learn from"
            )
        alignment = read_alignment(bundle.manifest["alignment"], bundle.reference)
        measured = None if bundle.manifest["quality"] is None else Gathered([], None, [])
        fixed = _fixed(bundle, known)
        lesson = _Lesson(list(known[:-1]), alignment, empty_view_of(bundle), fixed, measured)
        learnt = self._relearn(knowledge, lesson, progress)
        return replace(learnt, taught=(*knowledge.taught, "u")), known[-1].image_id

    def _relearn(self, knowledge: Knowledge, lesson: _Lesson, progress: Progress) -> Knowledge:
        """With the settings that the bundle was learnt with."""
        bundle = knowledge.bundle
        settings, patches = settings_of(bundle.manifest["scorer"], self._most_bytes(bundle))
        rate = bundle.manifest["threshold"]["wanted_rate"]
        return self._learn(knowledge, lesson, settings, patches, rate, True, progress)

    def _most_bytes(self, bundle: Bundle) -> int:
        return affordable_bytes(bundle.manifest["encoder"].get("multiply_adds"))

    def _learn(
        self,
        knowledge: Knowledge,
        lesson: _Lesson,
        settings: ScorerSettings,
        patches: Any,
        rate: float,
        extends: bool,
        progress: Progress,
    ) -> Knowledge:
        base, count = knowledge.bundle, len(lesson.pictures)
        if count < LEAST_IMAGES:
            raise InputError(
                f"{count} good frames are too few, wanted at least {LEAST_IMAGES} that differ"
            )
        done = 0

        def encoded() -> None:
            nonlocal done
            done += 1
            progress("encoding", done, count)

        encodings = Encodings(
            [picture.pixels_rgb for picture in lesson.pictures], self._encoder, encoded
        )
        progress("setting the threshold", count, count)
        learning = learn(
            lesson.pictures,
            self._encoder,
            lesson.alignment,
            settings,
            rate,
            lesson.empty_view,
            patches,
            encodings,
        )
        region, quality = knowledge.region, None
        if lesson.measured is not None:
            quality = quality_section(lesson.measured, learning, lesson.fixed)
        manifest = learnt_manifest(base.manifest, learning, region, quality, extends)
        manifest["manifest_sha256"] = canonical_sha256(manifest)
        for array in learning.reference.values():
            array.setflags(write=False)
        decoder = base.decoder if extends else None
        bundle = Bundle(base.path, manifest, base.encoder, decoder, learning.reference)
        return replace(knowledge, bundle=bundle, pictures=tuple(learning.pictures))


@dataclass(frozen=True)
class _Lesson:
    """What is to be learnt; with `measured`, new frames if any, the section `quality` too."""

    pictures: list[LearntPicture]
    alignment: Alignment
    empty_view: EmptyView | None
    fixed: Limits | None
    measured: Gathered | None = None


def _fixed(bundle: Bundle, known: Sequence[LearntPicture]) -> Limits | None:
    return fixed_limits(bundle, {picture.image_id for picture in known})


def _why(sentence: str) -> str:
    """From `gather`'s sentence on a single frame, the part that says why."""
    _, mark, rest = sentence.partition("(first: ")
    return rest.removesuffix(")").partition(": ")[2] if mark else sentence


def with_threshold(bundle: Bundle, value: float) -> Bundle:
    """
    The bundle with its threshold moved by hand.

    `calibrated` keeps where the calibration had put it; moved back there, nothing is left of it.
    """
    section = dict(bundle.manifest["threshold"])
    calibrated = section.pop("calibrated", section["value"])
    method = section["method"].partition(", moved by hand")[0]
    section |= {"value": value, "method": method}
    if value != calibrated:
        section |= {"method": f"{method}, moved by hand", "calibrated": calibrated}
    manifest = {**bundle.manifest, "threshold": section}
    manifest["manifest_sha256"] = canonical_sha256(manifest)
    return replace(bundle, manifest=manifest)


def write(
    knowledge: Knowledge, folder: Path, part: str, parent_sha256: str | None, typed: Sequence[str]
) -> Bundle:
    """
    Write what is known as a new bundle.

    Parameters
    ----------
    knowledge : Knowledge
    folder : Path
        Must not exist.
    part : str
        Name of the part.
    parent_sha256 : str or None
        Of the bundle that the session started from.
    typed : sequence of str
        The command line, for the record.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    bundle = knowledge.bundle
    packed = None
    # A threshold can be moved without the pictures that the reference was learnt from.
    if set(knowledge.taught) != {"threshold"} or knowledge.pictures is not None or bundle.learnt():
        packed, _ = kept_pictures(list(pictures_of(knowledge)))
    command = shlex.join(["edge-app", *typed])
    keys = " ".join(knowledge.taught)
    manifest = {
        **bundle.manifest,
        "parent_sha256": parent_sha256,
        "part": part,
        "made": made_now(command, ("scikit-learn", "opencv-python", "opencv-python-headless")),
        "provenance": {
            **bundle.manifest["provenance"],
            "remake": [*bundle.manifest["provenance"]["remake"], f"{command} (keys: {keys})"],
        },
    }
    return write_bundle(folder, manifest, bundle.encoder, bundle.decoder, bundle.reference, packed)


def free_folder(wanted: Path) -> Path:
    """`wanted`, or if something is there the first free one of ``wanted-2``, ``-3`` and so on."""
    folder, number = wanted, 2
    while folder.exists() or folder.is_symlink():
        folder = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return folder
