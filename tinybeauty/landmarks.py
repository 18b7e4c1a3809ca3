"""The 478 landmarks of a face: which number is where, and the file that holds them beside a photo.

Landmarks are MediaPipe's, an array (478, 2) in pixels; (0, 0) is the picture's top left corner.
"""

from __future__ import annotations

import json

import numpy as np

from tinybeauty.errors import LeftOut, one_line

Array = np.ndarray

# Numbers of MediaPipe's face mesh. "Left" is left in the picture; outer corner first, then to the nose.
# Source: mediapipe/python/solutions/face_mesh_connections.py, release 0.10.21.
UPPER_LID = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
LOWER_LID = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (263, 249, 390, 373, 374, 380, 381, 382, 362))
BROW_TOP = ((70, 63, 105, 66, 107), (300, 293, 334, 296, 336))
BROW_BASE = ((46, 53, 52, 65, 55), (276, 283, 282, 295, 285))
LIPS_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
LIPS_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
             152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
CHEEK = ((50, 205, 129, 234), (280, 425, 358, 454))  # cheekbone, apple, wing of the nose, ear
BARE_SKIN = (50, 101, 118, 205, 280, 330, 347, 425, 9, 151, 108, 337, 195, 5)  # no hair grows there
# A face without these in the picture cannot be made up.
NEEDED = (*BARE_SKIN, *LIPS_OUTER, *UPPER_LID[0], *UPPER_LID[1])
EYE_CORNERS = (33, 263)  # the outer ones
NOSE_TIP, FOREHEAD, CHIN = 1, 10, 152
# The six points of dlib's 68 around each eye, and the corners of the mouth.
DLIB_EYES = ((33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380))
MOUTH_CORNERS = (61, 291)

FARTHEST = 1e6  # pixels from a picture's corner: no picture is as large


def read_landmarks(data: bytes) -> Array:
    """Return the landmarks (478, 2) of a photo's json file.

    Raises:
        LeftOut: it holds no 478 points.
    """
    try:
        content = json.loads(data)
        if not isinstance(content, dict) or "landmarks" not in content:
            raise ValueError('there must be {"landmarks": [[x, y], ...]} in it')
        points = np.array(content["landmarks"], np.float64)
    except (ValueError, TypeError, RecursionError) as error:
        raise LeftOut(f"the landmarks beside it cannot be read: {one_line(error)}") from None
    if points.shape[:1] != (478,) or points.ndim != 2 or points.shape[1] < 2:
        raise LeftOut(f"the landmarks beside it must be 478 points [x, y], found shape {points.shape}")
    if not (abs(points) < FARTHEST).all():  # nor NaN
        raise LeftOut("the landmarks beside it must be 478 points [x, y] in pixels; some are not")
    points = points[:, :2]
    if (abs(points) <= 2).all():
        raise LeftOut("the landmarks beside it are fractions; multiply them by the width and the height")
    left, right, mouth = (points[list(part)].mean(0) for part in (*DLIB_EYES, MOUTH_CORNERS))
    across, down = right - left, mouth - (left + right) / 2
    if across[0] * down[1] < across[1] * down[0]:
        raise LeftOut("the landmarks beside it are those of a mirrored face; each is [x, y], not [y, x]")
    return points
