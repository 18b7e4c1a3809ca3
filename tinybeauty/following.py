"""Faces followed from frame to frame of a video, their landmarks smoothed over time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tinybeauty import faces
from tinybeauty.alignment import find_quad, find_way_back, move_to_square
from tinybeauty.blending import SIDE, Request
from tinybeauty.errors import LeftOut
from tinybeauty.views import cut_view

if TYPE_CHECKING:
    from tinybeauty.face_models import FaceModels

Array = np.ndarray
LOOK_AGAIN = 24  # frames until new faces are looked for
LOOK_SOON = 12  # the same where there is none
SMOOTH = 0.35  # of what a frame shows goes into a still face's landmarks
STILL, MOVING = 1.5, 5.0  # pixels of 256: from there on more of it does, up to all
LARGER = 1.15  # times as wide as the largest so far: then the makeup of one face alone goes over to it
FADE_IN = 0.2  # a frame: a face that turns up or turns away gets or loses its makeup softly


@dataclass(frozen=True, eq=False)
class Followed:
    """A face that is followed, in one frame.

    Attributes:
        points: (478, 2) smoothed landmarks in the frame's pixels.
        view: its square, RGB, SIDE x SIDE.
        weight: how much of the makeup it has, 0 to 1.
        note: where it was when it came, and why it has never had any makeup; empty: it has.
        share: of the weight, where the largest face alone gets makeup: 1 for that, 0 for others, or between.
    """

    points: Array
    view: Image.Image
    weight: float
    note: str = ""
    share: float | None = None

    @property
    def middle(self) -> Array:
        """Of its landmarks, (2,)."""
        return self.points.mean(0)

    @property
    def width(self) -> float:
        """Of its landmarks, in pixels."""
        return float(np.ptp(self.points[:, 0]))


class Follower:
    """Follows the faces of a video.

    Attributes:
        left_out: the notes of those that left without ever having had makeup.
    """

    def __init__(self, models: FaceModels, request: Request) -> None:
        """Start with no face."""
        self.models, self.request = models, request
        self.followed: list[Followed] = []
        self.left_out: list[str] = []
        self.frame, self.until_look = 0, 0

    def follow(self, picture: Image.Image) -> list[Followed]:
        """Return the faces of the next frame, the largest first, which may be the only one with a weight."""
        self.frame += 1
        had = len(self.followed)
        moved = [self.move(picture, one) for one in self.followed]
        self.left_out += [old.note for old, one in zip(self.followed, moved, strict=True) if not one]
        self.followed = [one for one in moved if one]
        self.until_look -= 1
        if self.until_look <= 0 or len(self.followed) < had:
            self.look_for_more(picture)
            self.until_look = LOOK_AGAIN if self.followed else LOOK_SOON
        found, self.followed = sorted(self.followed, key=lambda one: -one.width), []
        for one in found:
            if not self.is_followed(one.middle, one.width):  # else two are on one face
                self.followed.append(one)
        if self.request.which == "all":
            return self.followed
        self.followed = self.share_out()
        return [replace(one, weight=one.weight * one.share) for one in self.followed]

    def share_out(self) -> list[Followed]:
        """Return the faces, one of them alone with a share, softly: it keeps that until another is larger."""
        if not self.followed:
            return []
        largest = self.followed[0]
        chosen = max(self.followed, key=lambda one: one.share or 0.0)
        if not chosen.share or largest.width > LARGER * chosen.width:
            chosen = largest
        shared = []
        for one in self.followed:
            goal = float(one is chosen)
            shared.append(replace(one, share=goal if one.share is None else fade(one.share, goal)))
        return shared

    def move(self, picture: Image.Image, one: Followed) -> Followed | None:
        """Return a face of the frame before as it is now; None: it is no longer there."""
        seen = faces.track(picture, self.models, one.points)
        if seen is None:
            return None
        shift = np.hypot(*(seen.points - one.points).mean(0)) * SIDE / max(seen.side, 1.0)
        share = SMOOTH + (1 - SMOOTH) * float(np.clip((shift - STILL) / (MOVING - STILL), 0, 1))
        points = one.points + share * (seen.points - one.points)
        view = cut_square(picture, points)
        reason = self.find_reason(picture, points, view)
        weight = fade(one.weight, float(not reason))
        return Followed(points, view, weight, one.note if reason else "", one.share)

    def find_reason(self, picture: Image.Image, points: Array, view: Image.Image) -> str:
        """Return why makeup cannot be put on a face; empty: it can."""
        way = find_way_back(find_quad(points), SIDE)
        try:
            faces.check_face(picture, points, self.request.smallest)
            faces.check_colours(view, move_to_square(points, way))
        except LeftOut as reason:
            return str(reason)
        return ""

    def list_left_out(self) -> list[str]:
        """Return a note for each kind of reason why faces never had makeup, that of the first one."""
        notes = filter(None, (*self.left_out, *(one.note for one in self.followed)))
        return list({note.split(": ")[1]: note for note in reversed(list(notes))}.values())[::-1]

    def is_followed(self, middle: Array, width: float) -> bool:
        """Return whether a face at `middle` is one of those that are followed."""
        return any(np.hypot(*(one.middle - middle)) < 0.5 * width for one in self.followed)

    def look_for_more(self, picture: Image.Image) -> None:
        """Take up the faces that are not followed yet."""
        alone = not self.followed  # the first frame or a cut: the makeup is there at once
        seeds = faces.find_seeds(picture, self.models, thoroughly=alone)
        if all(self.is_followed(seed.box.mean(0), np.ptp(seed.box[:, 0])) for seed in seeds):
            return  # what the detectors see tells at a tenth of the time that there is nobody new
        for face in faces.find_faces(picture, self.models, rounds=1).faces:
            x, y = face.points.mean(0)
            if not self.is_followed(np.array((x, y)), np.ptp(face.points[:, 0])):
                view = cut_square(picture, face.points)
                reason = self.find_reason(picture, face.points, view)
                note = f"the face at ({x:.0f}, {y:.0f}) in frame {self.frame}: {reason}" if reason else ""
                self.followed.append(Followed(face.points, view, float(alone and not reason), note))


def fade(value: float, goal: float) -> float:
    """Return a value that goes to a goal, as it is a frame later."""
    return value + float(np.clip(goal - value, -FADE_IN, FADE_IN))


def cut_square(picture: Image.Image, points: Array) -> Image.Image:
    """Return the square around a face, RGB, SIDE x SIDE.

    Not by `align`: near the frame's border its soft mirrored one takes longer than all the rest.
    """
    quad = find_quad(points)
    view, _ = cut_view(picture, np.stack((quad[0], quad[3] - quad[0], quad[1] - quad[0])), 2 * SIDE)
    return Image.fromarray(view).reduce(2)
