"""A film into shots: PySceneDetect says where it is cut, our own guarded decoder shows it the film.

Two detectors: the adaptive one compares a frame's change with that of its neighbours, so that a
fast camera is no cut; the other one cuts in the middle of a fade through black. Dissolves are no
cuts, and one within two frames of an end of the film is not seen.

What lies between two cuts is a shot, however long: the plan draws another part of it at each visit,
and in parts of its own it would be both trained on and held out.
"""

from __future__ import annotations

from typing import IO, Any

from av.video.reformatter import Interpolation, VideoReformatter
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ThresholdDetector

from data_pipeline.files import Limits, guarded
from data_pipeline.places import Place
from data_pipeline.probe import Found, look
from data_pipeline.runner import HERE, Runner

SHORTEST_S = 0.5  # a shorter shot is left out: a flash, or the pieces of a fade
SIDE = 128  # pixels of the longer side that is looked at
ANY_RATE = 24.0  # the detector wants one; frames are counted


class Detectors:
    """`probe.Cuts` by PySceneDetect."""

    def __init__(self) -> None:
        self._found: set[int] = set()
        self._seen = 0
        # Every cut counts: a shot that is too short is left out, not hidden in the one before.
        self._detectors = (AdaptiveDetector(min_scene_len=1), ThresholdDetector(min_scene_len=1))
        self._scaler = VideoReformatter()

    @property
    def places(self) -> list[int]:
        return sorted(self._found - {0})

    def see(self, frame: Any) -> None:
        scale = min(1.0, SIDE / max(frame.height, frame.width))
        small = self._scaler.reformat(
            frame,
            width=max(1, round(frame.width * scale)),
            height=max(1, round(frame.height * scale)),
            format="bgr24",
            interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        ).to_ndarray()
        now = FrameTimecode(self._seen, ANY_RATE)
        for detector in self._detectors:
            self._found.update(cut.frame_num for cut in detector.process_frame(now, small))
        self._seen += 1


def shots(place: Place, *, limits: Limits | None = None, run: Runner = HERE) -> list[Found]:
    """Every shot of a film, in order; one, if it is not cut. The film is seen where `run` says.

    Raises:
      BadClip: the film cannot be trained on, and why.
    """
    limits = limits or Limits()
    parts = guarded(place, limits, lambda file: run.ask(watch, file, limits=limits))
    return [Found(**part) for part in parts]


def watch(file: IO[bytes], *, limits: Limits) -> list[dict[str, Any]]:
    """`probe.look` at all of a film; a task of `runner.Runner`."""
    return look(file, limits=limits, still=False, cuts=Detectors())


def is_short(shot: Found) -> bool:
    return shot.end_s - shot.start_s < SHORTEST_S
