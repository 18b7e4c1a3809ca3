"""A video that gets makeup: same size, rate, rotation, colours and sound, each frame as a photo would.

Faces are followed from frame to frame, and their landmarks smoothed over time. The makeup is added to the
video's own brightness and colour planes: away from the faces a frame goes into the encoder as it came.
PyAV, whose wheel brings FFmpeg, is imported when the first video comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from tinybeauty import blending, faces
from tinybeauty.alignment import find_quad, find_way_back
from tinybeauty.blending import SIDE, Request
from tinybeauty.errors import LeftOut, UserError, one_line
from tinybeauty.views import cut_view

if TYPE_CHECKING:
    from av import VideoFrame
    from torch import nn

    from tinybeauty.face_models import FaceModels

Array = np.ndarray
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"}
LOOK_AGAIN = 24  # frames until new faces are looked for
LOOK_SOON = 12  # the same where there is none
SMOOTH = 0.35  # of what a frame shows goes into a still face's landmarks
STILL, MOVING = 1.5, 5.0  # pixels of 256: from there on more of it does, up to all
FADE_IN = 0.2  # a frame: a face that turns up or turns away gets or loses its makeup softly
CRF = "18"  # x264's quality: to the eye as good as what came in
PLANAR = {f"yuv{full}{kind}p{deep}" for full in ("", "j") for kind in ("420", "422", "444")
          for deep in ("", "10le")}  # fmt: skip
# Weights of red and blue in brightness, by FFmpeg's number of the matrix.
# Source: ITU-R BT.709, BT.601, BT.2020.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


# ======================================================================================================
# Faces over time
# ======================================================================================================


@dataclass
class Followed:
    """A face that is followed.

    Attributes:
        points: (478, 2) smoothed landmarks in the frame's pixels.
        weight: how much of the makeup it has, 0 to 1.
    """

    points: Array
    weight: float


class Follower:
    """Follows the faces of a video."""

    def __init__(self, models: FaceModels, request: Request) -> None:
        """Start with no face."""
        self.models, self.request = models, request
        self.followed: list[Followed] = []
        self.until_look = 0
        self.seen = 0  # faces in all that were ever taken up

    def follow(self, picture: Image.Image) -> list[Followed]:
        """Return the faces of the next frame, the largest first."""
        had = len(self.followed)
        self.followed = [one for one in self.followed if self.follow_one(picture, one)]
        self.until_look -= 1
        if self.until_look <= 0 or len(self.followed) < had:
            self.look_for_more(picture)
            self.until_look = LOOK_AGAIN if self.followed else LOOK_SOON
        self.followed.sort(key=lambda one: -np.ptp(one.points[:, 0]))
        return self.followed[:1] if self.request.which == "largest" else self.followed

    def follow_one(self, picture: Image.Image, one: Followed) -> bool:
        """Move a face to where it is now; return whether it is still there."""
        seen = faces.track(picture, self.models, one.points)
        if seen is None:
            return False
        quad = find_quad(seen.points)
        shift = (
            np.hypot(*(seen.points - one.points).mean(0)) * SIDE / max(np.hypot(*(quad[3] - quad[0])), 1.0)
        )
        share = SMOOTH + (1 - SMOOTH) * float(np.clip((shift - STILL) / (MOVING - STILL), 0, 1))
        one.points = one.points + share * (seen.points - one.points)
        wanted = float(self.is_wanted(picture, one.points))
        one.weight += float(np.clip(wanted - one.weight, -FADE_IN, FADE_IN))
        return True

    def is_wanted(self, picture: Image.Image, points: Array) -> bool:
        """Return whether a face is one that makeup can be put on."""
        quad = find_quad(points)
        try:
            faces.check_face(picture, points)
        except LeftOut:
            return False
        return float(np.hypot(*(quad[3] - quad[0]))) >= self.request.smallest

    def is_followed(self, middle: Array, width: float) -> bool:
        """Return whether a face at `middle` is one of those that are followed."""
        return any(np.hypot(*(one.points.mean(0) - middle)) < 0.5 * width for one in self.followed)

    def look_for_more(self, picture: Image.Image) -> None:
        """Take up the faces that are not followed yet."""
        alone = not self.followed  # the first frame or a cut: the makeup is there at once
        seeds = faces.find_seeds(picture, self.models, thoroughly=alone)
        if all(self.is_followed(seed.box.mean(0), np.ptp(seed.box[:, 0])) for seed in seeds):
            return  # what the detectors see tells at a tenth of the time that there is nobody new
        for face in faces.find_faces(picture, self.models, rounds=1).faces:
            if not self.is_followed(face.points.mean(0), np.ptp(face.points[:, 0])):
                wanted = self.is_wanted(picture, face.points)
                self.followed.append(Followed(face.points, float(alone and wanted)))
                self.seen += wanted


# ======================================================================================================
# Makeup on a frame
# ======================================================================================================


def view_planes(frame: VideoFrame) -> list[Array]:
    """Return the planes of a frame, brightness and two colours, (H, W, 1) each; writing changes the frame."""
    planes = []
    for plane, component in zip(frame.planes, frame.format.components, strict=True):
        kind = np.dtype(np.uint8 if component.bits == 8 else np.uint16)
        rows = np.frombuffer(plane, kind).reshape(plane.height, plane.line_size // kind.itemsize)
        planes.append(rows[: component.height, : component.width, None])
    return planes


def find_weights(frame: VideoFrame) -> tuple[float, float]:
    """Return the weights of red and blue in the brightness of a frame."""
    unknown = WEIGHTS[1] if frame.height >= 720 else WEIGHTS[6]  # as players take it
    return WEIGHTS.get(int(frame.colorspace), unknown)


def to_picture(frame: VideoFrame) -> Image.Image:
    """Return a frame as RGB."""
    wide = find_weights(frame) != WEIGHTS[6]
    rgb = frame.reformat(format="rgb24", src_colorspace="ITU709" if wide else "ITU601")
    return Image.fromarray(rgb.to_ndarray())


def split_residual(residual: Array, frame: VideoFrame) -> Array:
    """Return a residual (N, N, 3) of sRGB levels as brightness and two colours, in the levels of a frame."""
    red, blue = find_weights(frame)
    full = frame.format.name.startswith("yuvj") or int(frame.color_range) == 2
    light = residual @ np.array((red, 1 - red - blue, blue), np.float32)
    parts = (
        light,
        (residual[..., 2] - light) / (2 * (1 - blue)),
        (residual[..., 0] - light) / (2 * (1 - red)),
    )
    deep = 2 ** (frame.format.components[0].bits - 8)
    scales = (1.0, 1.0, 1.0) if full else (219 / 255, 224 / 255, 224 / 255)
    return np.stack([part * (scale * deep) for part, scale in zip(parts, scales, strict=True)], axis=2)


def paint_frame(
    frame: VideoFrame, picture: Image.Image, one: Followed, model: nn.Module, request: Request
) -> None:
    """Put makeup on one face of a frame, in place."""
    quad = find_quad(one.points)
    way = find_way_back(quad, SIDE)
    # Not `align`: its soft mirrored border, where a face is near the frame's, takes longer than all the rest.
    view, _ = cut_view(picture, np.stack((quad[0], quad[3] - quad[0], quad[1] - quad[0])), 2 * SIDE)
    points = one.points @ way[:, :2].T + way[:, 2]
    residual = blending.find_residual(Image.fromarray(view).reduce(2), points, model, request)
    residual *= np.float32(one.weight)
    top = 2 ** frame.format.components[0].bits - 1
    parts = split_residual(residual, frame)
    for number, plane in enumerate(view_planes(frame)):
        step = frame.width / plane.shape[1], frame.height / plane.shape[0]  # colours may be coarser
        coarse = np.c_[way[:, :2] * np.rint(step), way[:, 2]]
        part = np.ascontiguousarray(parts[..., number : number + 1])
        blending.lay_residual(
            plane, part, coarse, lambda pixels, laid: np.rint(pixels + laid).clip(0, top).astype(pixels.dtype)
        )


def put_side_by_side(before: list[Array], frame: VideoFrame) -> VideoFrame:
    """Return a frame with both, planes as they were on the left when it is shown as it is to be turned."""
    import av

    turn = int(frame.rotation) % 360  # against the clock
    axis = 0 if turn in (90, 270) else 1
    width, height = frame.width * (1 + axis), frame.height * (2 - axis)
    both = av.VideoFrame(width, height, frame.format.name)
    for plane, *sides in zip(view_planes(both), before, view_planes(frame), strict=True):
        plane[:] = np.concatenate(sides if turn in (0, 90) else sides[::-1], axis=axis)
    for name in ("pts", "time_base", "colorspace", "color_range"):
        setattr(both, name, getattr(frame, name))
    return both


# ======================================================================================================
# Files
# ======================================================================================================


def is_video(path: Path) -> bool:
    """Return whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def add_encoder(output: Any, stream: Any, frame: VideoFrame, size: tuple[int, int]) -> Any:
    """Return a stream that encodes frames like one of another stream's, at `size`."""
    deep = frame.format.components[0].bits > 8
    if output.format.name == "webm":
        name, options = "libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}
    else:
        name, options = ("libx265" if deep else "libx264"), {"crf": CRF, "preset": "veryfast"}
    options |= {"x265-params": "log-level=error"} if name == "libx265" else {}
    options |= {"bf": "0"} if output.format.name == "avi" else {}  # where frames cannot come out of order
    encoder = output.add_stream(name, rate=stream.average_rate or 25, options=options)
    encoder.width, encoder.height = size
    encoder.pix_fmt, encoder.time_base = frame.format.name, stream.time_base
    context, own = encoder.codec_context, stream.codec_context
    context.time_base = stream.time_base
    for key in ("sample_aspect_ratio", "color_range", "color_primaries", "color_trc", "colorspace"):
        if value := getattr(own, key):
            setattr(context, key, value)
    if deep and output.format.name in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # Apple's players know no other
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            encoder.set_display_matrix(np.frombuffer(bytes(data), np.int32).tolist())
    encoder.metadata.update({key: value for key, value in stream.metadata.items() if key == "language"})
    return encoder


def read_frames(source: Any, stream: Any, copies: dict[int, Any], output: Any) -> Iterator[VideoFrame]:
    """Yield the frames of a video; its sound goes over as it is."""
    waiting: list[Any] = []  # the header, which comes with the first packet, must know of the picture too
    for packet in source.demux([stream, *(source.streams[index] for index in copies)]):
        if packet.stream.index == stream.index:
            for frame in packet.decode():
                yield frame if frame.format.name in PLANAR else frame.reformat(format="yuv420p")
        elif packet.dts is not None:
            packet.stream = copies[packet.stream.index]
            waiting.append(packet)
        if output.streams.video:
            output.mux(waiting)
            waiting = []


def encode_video(
    source: Any, output: Any, model: nn.Module, models: FaceModels, request: Request, name: str
) -> None:
    """Make up the frames of an open video and write them to another.

    Raises:
        LeftOut: it has no picture, or no face that makeup can be put on.
    """
    if not source.streams.video:
        raise LeftOut("there is no picture in it")
    stream = source.streams.video[0]
    stream.thread_type = "AUTO"
    output.metadata.update(source.metadata)
    copies = {sound.index: output.add_stream_from_template(sound) for sound in source.streams.audio}
    follower, encoder = Follower(models, request), None
    total = stream.frames or round(float((source.duration or 0) / 1e6 * (stream.average_rate or 0))) or None
    with tqdm(total=total, unit="frame", desc=name, disable=None) as bar:
        for frame in read_frames(source, stream, copies, output):
            before = [plane.copy() for plane in view_planes(frame)] if request.compare else []
            if not request.nothing:
                picture = to_picture(frame)
                frame.make_writable()  # the decoder still needs its own for the next frames
                for one in follower.follow(picture):
                    if one.weight:
                        paint_frame(frame, picture, one, model, request)
            both = put_side_by_side(before, frame) if request.compare else frame
            if encoder is None:
                encoder = add_encoder(output, stream, frame, (both.width, both.height))
            both.pict_type = 0  # the encoder chooses its own key frames
            output.mux(encoder.encode(both))
            bar.update()
    if encoder is None:
        raise LeftOut("no frame of it can be read")
    output.mux(encoder.encode(None))
    if not follower.seen and not request.nothing:
        raise LeftOut("no face found in any frame")


def make_up_video(source: Path, target: Path, model: nn.Module, models: FaceModels, request: Request) -> None:
    """Put makeup on a video and write it; where that fails, or is interrupted, `target` is removed.

    Raises:
        LeftOut: it cannot be read, or no face in it gets makeup.
        UserError: it cannot be written, or PyAV is missing.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install -r requirements.txt") from None
    try:
        with av.open(str(source), metadata_errors="replace") as opened, av.open(str(target), "w") as output:
            encode_video(opened, output, model, models, request, source.name)
    except BaseException as error:
        with suppress(OSError):
            target.unlink()
        if isinstance(error, av.FFmpegError):
            raise LeftOut(f"FFmpeg says: {one_line(error)}") from None
        raise
