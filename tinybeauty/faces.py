"""Faces in a photo: found at any tilt and size, checked, never believed.

    models = FaceModels(fetch_face_models())
    for face in find_faces(photo, models).faces:
        picture, points = align(photo, face.points, 256)

A photo is an upright RGB image. Where the detectors see a face, it is cut out upright and compared with
itself turned by quarters; then the mesh looks at it a dozen times from slightly different places. What does
not agree with itself is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tinybeauty.alignment import Array, find_quad, find_side, window
from tinybeauty.errors import LeftOut
from tinybeauty.landmarks import (
    CHEEK,
    CHIN,
    DLIB_EYES,
    EYE_CORNERS,
    FOREHEAD,
    MOUTH_CORNERS,
    NEEDED,
    NOSE_TIP,
    UPPER_LID,
)
from tinybeauty.views import (
    choose_places,
    cut_view,
    find_frame,
    look_closely,
    look_turned,
    make_square,
    shrink_onto,
)

if TYPE_CHECKING:
    from tinybeauty.face_models import Detection, FaceModels

# ======================================================================================================
# Finding
# ======================================================================================================

MIN_BOX = 52  # of a detector's box in pixels: that of a face whose square has 100 px
SMALLEST = 13  # pixels of a box in what the far detector looks at; it still sees 17 of 17
MAX_LOOK = (576, 768)  # pixels of the longer side of what it looks at: at first, and if there is no face
# One look of the mesh is off by 1 to 3 px of 256, by chance: it depends on every fraction of a pixel. So it
# looks from several places around the middle, and the mean counts.
ROUNDS = 3  # of four looks: the squares of turned photos are at most 0.6 px off; 2: 0.8 px, 1: 1.3 px
MIN_PRESENCE = 0.5
MAX_APART = 0.4  # from the detector's eyes, nose and mouth to the mesh's, in eye distances
MAX_SHAKEN = 0.05  # of the mesh's landmarks from look to look, in eye distances
SURE = 0.7  # score of a detector from which on it is said what became of it; a neck had 0.61


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a photo.

    Attributes:
        points: (478, 2) landmarks in the photo's pixels.
        depths: (478,) in the same unit, smaller is nearer.
        score: how sure the detector is of it, 0 to 1.
    """

    points: Array
    depths: Array
    score: float

    @cached_property
    def quad(self) -> Array:
        """(4, 2) corners of its FFHQ square: top left, bottom left, bottom right, top right."""
        return find_quad(self.points)

    @cached_property
    def side(self) -> float:
        """Of that square, in pixels."""
        return find_side(self.points)


@dataclass(frozen=True)
class Found:
    """What a photo shows.

    Attributes:
        faces: the largest first.
        left_out: for everything that looked like a face and is none, or cannot be used, where it is and why.
    """

    faces: list[Face]
    left_out: list[str]


def find_seeds(photo: Image.Image, models: FaceModels, thoroughly: bool) -> list[Detection]:
    """Return what the detectors take for faces, in the photo's pixels: one for each place, surest first.

    Args:
        photo: the photo.
        models: the models.
        thoroughly: look for small faces in all four turns too, and for faces larger than the photo.
    """
    longer = int(np.clip(32 * np.ceil(max(photo.size) * SMALLEST / MIN_BOX / 32), 192, MAX_LOOK[thoroughly]))
    looks = [(models.near, shrink_onto(photo, 128, 128), (0, 1, 2, 3))]
    if thoroughly:
        looks.append((models.near, shrink_onto(photo, 64, 128), (0, 1, 2, 3)))
    looks.append((models.far, shrink_onto(photo, longer, 32), (0, 1, 2, 3) if thoroughly else (0,)))
    if not thoroughly:  # few small faces lie on their side or upside down: at half the size
        half = max(-(-longer // 64) * 32, 192)
        looks.append((models.far, shrink_onto(photo, half, 32), (1, 2, 3)))
    seen = []
    for detector, (picture, scale), turns in looks:
        for _, one in look_turned(detector, picture, turns, 0.5):
            seen.append(replace(one, box=one.box * scale, keys=one.keys * scale))
    seeds: list[Detection] = []
    for one in sorted(seen, key=lambda one: -one.score):
        if not any(is_same(one.box, other.box) for other in seeds):
            seeds.append(one)
    return seeds


def is_same(box: Array, other: Array) -> bool:
    """Return whether two boxes (2, 2) show the same face: near each other, and of about one size."""
    sides = [float((one[1] - one[0]).max()) for one in (box, other)]
    apart = float(np.hypot(*(box.mean(0) - other.mean(0))))
    return apart < 0.5 * max(sides) and max(sides) < 2.5 * min(sides)


# ======================================================================================================
# One face
# ======================================================================================================


def look_upright(photo: Image.Image, models: FaceModels, seed: Detection) -> Detection:
    """Return the detection of one face seen from near and upright, in the photo's pixels.

    Raises:
        LeftOut: from near it is no face.
    """
    for _ in range(3):  # a face that was seen aslant is seen straight the next time
        across = seed.keys[1] - seed.keys[0]
        side = 1.5 * float((seed.box[1] - seed.box[0]).max())
        square = make_square(seed.box.mean(0), side, float(np.arctan2(across[1], across[0])))
        view, (corner, right, down) = cut_view(photo, square, 128, 1.3)
        axes = np.stack((right, down)) / 128
        seen = [
            (turn, one)
            for turn, one in look_turned(models.near, view, (0, 1, 2, 3), 0.5)
            if np.hypot(*(one.box.mean(0) - 64)) < 32
        ]
        if not seen:
            raise LeftOut("from near it is no face")
        turn, best = max(seen, key=lambda pair: pair[1].score)
        middle, half = (
            best.box.mean(0) @ axes + corner,
            (best.box[1] - best.box[0]).max() / 2 * np.hypot(*axes[0]),
        )
        seed = replace(best, box=np.stack((middle - half, middle + half)), keys=best.keys @ axes + corner)
        across = best.keys[1] - best.keys[0]
        if turn == 0 and abs(across[1]) < 0.2 * across[0]:
            break
    return seed


def check_plausible(points: Array) -> None:
    """Refuse what is no face: eyes, nose, mouth and chin are not in their order from top to bottom.

    Raises:
        LeftOut: they are not.
    """
    eyes = np.stack([points[list(eye)].mean(0) for eye in DLIB_EYES])
    across = eyes[1] - eyes[0]
    down = np.array((-across[1], across[0]))
    rows = [
        points[FOREHEAD],
        eyes.mean(0),
        points[NOSE_TIP],
        points[list(MOUTH_CORNERS)].mean(0),
        points[CHIN],
    ]
    heights = np.array([row @ down for row in rows]) / max(across @ across, 1e-6)
    if (np.diff(heights) < 0.05).any() or not 0.5 < heights[3] - heights[1] < 2.5:
        raise LeftOut("its landmarks are no face's")


def look_at(photo: Image.Image, models: FaceModels, seed: Detection, rounds: int) -> Face:
    """Return one face, looked at from several places until they agree.

    Args:
        photo: the photo.
        models: the models.
        seed: the face as the detector sees it upright, in the photo's pixels.
        rounds: of four looks each, that count.

    Raises:
        LeftOut: the mesh sees no face, or another one each time, or not the detector's.
    """
    across = seed.keys[1] - seed.keys[0]
    side = 1.5 * float((seed.box[1] - seed.box[0]).max())
    square = make_square(seed.box.mean(0), side, float(np.arctan2(across[1], across[0])))
    first, _ = look_closely(photo, models, square, choose_places(0)[:2])
    square, looks, sure = find_frame(first.mean(0)[:, :2]), [], []
    for number in range(1, rounds + 1):
        more, presence = look_closely(photo, models, square, choose_places(number))
        looks, sure = [*looks, *more], [*sure, *presence]
        square = find_frame(np.mean(looks, 0)[:, :2])
    points, spread = np.mean(looks, 0), np.std(looks, 0)[:, :2]
    parts = [list(eye) for eye in DLIB_EYES] + [[NOSE_TIP], list(MOUTH_CORNERS)]
    own = np.stack([points[part, :2].mean(0) for part in parts])
    eyes = float(np.hypot(*(own[1] - own[0])))
    if np.median(sure) < MIN_PRESENCE:
        raise LeftOut(
            f"the mesh sees no face there: presence {np.median(sure):.2f}, {MIN_PRESENCE} is needed"
        )
    check_plausible(points[:, :2])
    apart = float(np.hypot(*(own - seed.keys[:4]).T).max()) / max(eyes, 1e-6)
    if apart > MAX_APART:
        raise LeftOut(f"detector and mesh do not agree: {apart:.2f} eye distances apart, {MAX_APART} at most")
    shaken = float(np.hypot(*spread.T).mean()) / max(eyes, 1e-6)
    if shaken > MAX_SHAKEN:
        raise LeftOut(
            f"the mesh does not agree with itself: by {shaken:.2f} eye distances, {MAX_SHAKEN} at most"
        )
    return Face(points[:, :2], points[:, 2], seed.score)


def find_faces(photo: Image.Image, models: FaceModels | None = None, rounds: int = ROUNDS) -> Found:
    """Return every face in a photo, at any tilt, and what only looked like one.

    Args:
        photo: RGB, upright.
        models: None: those in the user's cache, fetched if need be.
        rounds: how often the mesh looks, times four: more is steadier and slower.

    Raises:
        UserError: the models cannot be had.
    """
    if models is None:
        from tinybeauty.face_models import load_face_models

        models = load_face_models()
    faces: list[tuple[Detection, Face]] = []
    failed: list[tuple[Detection, str]] = []
    for thoroughly in (False, True):
        for seed in find_seeds(photo, models, thoroughly):
            try:
                seen = look_upright(photo, models, seed)
                if not any(is_same(seen.box, other.box) for other, _ in faces):
                    faces.append((seen, look_at(photo, models, seen, rounds)))
            except LeftOut as reason:
                failed.append((seed, str(reason)))
        if faces:
            break
    left_out = []
    for seed, reason in failed:
        x, y = seed.box.mean(0)
        apart = [np.abs(other.box.mean(0) - (x, y)).max() / np.ptp(other.box[:, 0]) for other, _ in faces]
        if seed.score >= SURE and min(apart, default=1.0) > 0.75:  # nearer, it is a part of a face
            left_out.append(f"something like a face at ({x:.0f}, {y:.0f}): {reason}")
    ordered = sorted((face for _, face in faces), key=lambda face: -face.side)
    return Found(ordered, list(dict.fromkeys(left_out)))


def track(frame: Image.Image, models: FaceModels, points: Array, places: int = 1) -> Face | None:
    """Return a face near to where it was in the frame before, without a detector; None if it is not there.

    Args:
        frame: RGB.
        models: the models.
        points: (478, 2) its landmarks in the frame before.
        places: how often the mesh looks, 1 to 4; the mean of several is steadier.
    """
    spots = choose_places(0)[:places] if places > 1 else np.array([(0.0, 0.0, 1.0, 0.0)])
    looks, sure = look_closely(frame, models, find_frame(points), spots)
    seen = looks.mean(0)
    try:
        check_plausible(seen[:, :2])
    except LeftOut:
        return None
    return Face(seen[:, :2], seen[:, 2], min(sure)) if min(sure) >= MIN_PRESENCE else None


# ======================================================================================================
# Faces that cannot be used
# ======================================================================================================

MIN_SIDE = 100  # of the FFHQ square in pixels: a smaller face shows no eyeliner
MAX_TURN = 0.45  # nose's shift from the middle of the eyes, in their distance; about 45 degrees
MIN_SHARPNESS = 0.08  # 863 sharp portraits have 0.23 to 0.96; blurred by 2 px of 256 they have 0.04 to 0.11
SHAPES = (0.735, 0.985)  # 863 portraits have 0.743 to 0.971; of those made wider by a third 96 % are outside
MIN_COLOUR = 4.0  # 863 portraits have 17 to 109, grey photos 0, or 1 after JPEG


def check_face(photo: Image.Image, points: Array, smallest: int = MIN_SIDE) -> None:
    """Refuse a face that shows too little of the makeup, or whose square has less than `smallest` pixels.

    Raises:
        LeftOut: it is too small, cut off or turned away.
    """
    side = find_side(points)
    if side < smallest:
        raise LeftOut(f"too small: the face's square has {side:.0f} px, {smallest} are needed")
    inner = points[list(NEEDED)]
    if (inner < 0).any() or (inner > photo.size).any():
        raise LeftOut("cut off: eyes, mouth or cheeks lie outside the picture")
    left, right = points[UPPER_LID[0][0]], points[UPPER_LID[1][0]]
    across = right - left
    turn = abs((points[NOSE_TIP] - (left + right) / 2) @ across) / max(across @ across, 1e-6)
    if turn > MAX_TURN:
        raise LeftOut(
            f"turned away: the nose lies {turn:.2f} eye distances beside the middle, {MAX_TURN} at most"
        )


def check_shape(face: Face) -> None:
    """Refuse the face of a photo that was made wider or narrower, such as 4:3 shown as 16:9.

    Raises:
        LeftOut: no face is as wide, or as narrow.
    """
    points = np.c_[face.points, face.depths]  # with depths, so that a turned face is no narrower
    left, right = points[EYE_CORNERS[0]], points[EYE_CORNERS[1]]
    eyes, height = np.linalg.norm(right - left), np.linalg.norm(points[FOREHEAD] - points[CHIN])
    middle = np.linalg.norm((left + right) / 2 - points[list(MOUTH_CORNERS)].mean(0))
    width = np.linalg.norm(points[CHEEK[0][3]] - points[CHEEK[1][3]])
    shape = float(np.cbrt(eyes / height * eyes / middle * width / height))
    if not SHAPES[0] <= shape <= SHAPES[1]:
        how = "narrower" if shape < SHAPES[0] else "wider"
        raise LeftOut(
            f"squeezed: made {how} than it was; width to height {shape:.2f}, {SHAPES[0]} to {SHAPES[1]}"
        )


def check_sharpness(picture: Image.Image, points: Array) -> None:
    """Refuse an aligned face that is blurred: edges of a pixel width at 256 px, relative to its contrast.

    Raises:
        LeftOut: it is blurred.
    """
    grey = np.asarray(picture.convert("L").resize((256, 256), Image.Resampling.LANCZOS), np.float32)
    part = window(points * 256 / picture.width, 0, (254, 254))
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    edges = (4 * grey[1:-1, 1:-1] - around)[part]
    sharpness = float(np.sqrt((edges**2).mean()) / max(grey[part].std(), 1e-3))
    if sharpness < MIN_SHARPNESS:
        raise LeftOut(f"blurred: sharpness {sharpness:.3f}, {MIN_SHARPNESS} is needed")


def check_colours(picture: Image.Image, points: Array) -> None:
    """Refuse an aligned face without colours, whose lips would turn red on grey skin.

    Raises:
        LeftOut: red, green and blue lie too near to each other, in levels of 255.
    """
    pixels = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR), np.float32)
    part = window(points * 256 / picture.width, 0, (256, 256))
    colour = float(np.ptp(pixels[part], axis=2).mean())
    if colour < MIN_COLOUR:
        raise LeftOut(f"grey: red, green and blue differ by {colour:.1f} of 255, {MIN_COLOUR} are needed")
