"""A video that gets makeup: same size, rate, rotation, colours and sound, each frame as a photo would.

Its faces are followed (following.py). The makeup is added to the video's own brightness and colour planes:
away from the faces a frame goes into the encoder as it came.
PyAV, whose wheel brings FFmpeg, is imported when the first video comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from tinybeauty import blending
from tinybeauty.alignment import find_quad, find_way_back, move_to_square
from tinybeauty.blending import SIDE, Request
from tinybeauty.errors import LeftOut, UserError, one_line
from tinybeauty.following import Followed, Follower
from tinybeauty.workers import run_ahead

if TYPE_CHECKING:
    from av import VideoFrame
    from torch import nn

    from tinybeauty.face_models import FaceModels

Array = np.ndarray
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"}
CRF = "18"  # x264's quality: to the eye as good as what came in
PLANAR = {f"yuv{full}{kind}p{deep}" for full in ("", "j") for kind in ("420", "422", "444")
          for deep in ("", "10le")}  # fmt: skip
# Weights of red and blue in brightness, by FFmpeg's number of the matrix.
# Source: ITU-R BT.709, BT.601, BT.2020.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


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


def to_planar(frame: VideoFrame) -> VideoFrame:
    """Return a frame as planes of brightness and two colours, one that has them already as it is."""
    if frame.format.name in PLANAR:
        return frame
    matrix = None
    if frame.format.is_rgb:  # the matrix that players will take to turn it back
        matrix = "ITU601" if find_weights(frame) == WEIGHTS[6] else "ITU709"
    return frame.reformat(format="yuv420p", dst_colorspace=matrix)


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
    frame: VideoFrame, one: Followed, others: list[Array], model: nn.Module, request: Request
) -> None:
    """Put makeup on one face of a frame, in place; `others` are the landmarks of its other faces."""
    way = find_way_back(find_quad(one.points), SIDE)
    points = move_to_square(one.points, way)
    residual = blending.find_residual(one.view, points, model, request)
    residual = residual * np.float32(one.weight) * blending.find_own(one.points, others, way)
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
        joined = np.concatenate(sides if turn in (0, 90) else sides[::-1], axis=axis)
        plane[:] = joined[: plane.shape[0], : plane.shape[1]]  # of an odd size two halves are one too many
    for name in ("pts", "time_base", "colorspace", "color_range"):
        setattr(both, name, getattr(frame, name))
    return both


# ======================================================================================================
# Files
# ======================================================================================================


def is_video(path: Path) -> bool:
    """Return whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def add_encoder(output: Any, stream: Any, frame: VideoFrame, painted: VideoFrame) -> Any:
    """Return a stream that encodes frames like `painted`, which was made of the first of another stream.

    Raises:
        LeftOut: the encoder does not know such frames.
    """
    deep = frame.format.components[0].bits > 8
    if output.format.name == "webm":
        if deep:
            raise LeftOut("WebM of more than 8 bits a colour is not supported; save it as .mp4 or .mkv")
        name, options = "libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}
    else:
        name, options = ("libx265" if deep else "libx264"), {"crf": CRF, "preset": "veryfast"}
    options |= {"x265-params": "log-level=error"} if name == "libx265" else {}
    options |= {"bf": "0"} if output.format.name == "avi" else {}  # where frames cannot come out of order
    encoder = output.add_stream(name, rate=stream.average_rate or 25, options=options)
    encoder.width, encoder.height = painted.width, painted.height
    encoder.pix_fmt, encoder.time_base = painted.format.name, stream.time_base
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


def fit_encoder(frame: VideoFrame, container: str) -> VideoFrame:
    """Return a frame as it can be encoded: H.264 and H.265 of an odd size have colours for every pixel."""
    if container == "webm" or not (frame.width % 2 or frame.height % 2):
        return frame
    return frame.reformat(format=frame.format.name.replace("420", "444").replace("422", "444"))


@contextmanager
def halve_threads() -> Iterator[None]:
    """Let PyTorch use half of its threads: two frames are worked on at a time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // 2, 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_frames(source: Any, stream: Any) -> Iterator[tuple[VideoFrame | None, list[Any]]]:
    """Yield the frames of a video, each with the sound and subtitles before it; at last None with the rest.

    Raises:
        LeftOut: they are not all of one size.
    """
    sounds: list[Any] = []
    sizes: set[tuple[int, int]] = set()
    for packet in source.demux([stream, *source.streams.audio, *source.streams.subtitles]):
        if packet.stream.index != stream.index:
            sounds += [packet] if packet.dts is not None else []
            continue
        for frame in packet.decode():
            sizes.add((frame.width, frame.height))
            if len(sizes) > 1:  # the encoder would squeeze what comes then
                raise LeftOut(f"its pictures change their size at {frame.time:.1f} s; give them one size")
            yield to_planar(frame), sounds
            sounds = []
    yield None, sounds


def follow_faces(
    source: Any, stream: Any, follower: Follower
) -> Iterator[tuple[VideoFrame | None, list[Followed], list[Any]]]:
    """Yield the frames of a video, each with its faces and the sound before it, as `read_frames` does."""
    for frame, sounds in read_frames(source, stream):
        followed = []
        if frame is not None and not follower.request.nothing:
            picture = to_picture(frame)
            frame.make_writable()  # the decoder still needs its own for the next frames
            followed = follower.follow(picture)
        yield frame, followed, sounds


def copy_streams(source: Any, output: Any) -> dict[int, Any]:
    """Return {number of a stream of sound or subtitles: its copy in the output, with language and title}."""
    copies = {}
    for stream in (*source.streams.audio, *source.streams.subtitles):
        copies[stream.index] = output.add_stream_from_template(stream)
        copies[stream.index].metadata.update(stream.metadata)
    return copies


def encode_video(
    source: Any, output: Any, model: nn.Module, models: FaceModels, request: Request, name: str
) -> list[str]:
    """Make up the frames of an open video and write them to another; return why some faces get no makeup.

    While a frame is painted and encoded, a thread reads the next and finds its faces.

    Raises:
        LeftOut: it has no picture, or no face that makeup can be put on.
    """
    if not source.streams.video:
        raise LeftOut("there is no picture in it")
    stream = source.streams.video[0]
    stream.thread_type = "AUTO"
    output.metadata.update(source.metadata)
    whole = [part for part in source.chapters() if 0 <= part["start"] <= part["end"]]
    output.set_chapters(whole)  # of others Matroska's writer would refuse the video
    copies = copy_streams(source, output)
    follower, encoder, painted = Follower(models, request), None, False
    total = stream.frames or round(float((source.duration or 0) / 1e6 * (stream.average_rate or 0))) or None
    with (
        halve_threads(),
        tqdm(total=total, unit="frame", desc=name, disable=None) as bar,
        closing(run_ahead(follow_faces(source, stream, follower))) as frames,
    ):
        for frame, followed, sounds in frames:
            if frame is not None:
                before = [plane.copy() for plane in view_planes(frame)] if request.compare else []
                for one in followed:
                    if one.weight:
                        others = [other.points for other in followed if other is not one]
                        paint_frame(frame, one, others, model, request)
                        painted = True
                both = put_side_by_side(before, frame) if request.compare else frame
                both = fit_encoder(both, output.format.name)
                if encoder is None:
                    encoder = add_encoder(output, stream, frame, both)
                both.pict_type = 0  # the encoder chooses its own key frames
                output.mux(encoder.encode(both))
                bar.update()
            if encoder is None:
                raise LeftOut("no frame of it can be read")
            for packet in sounds:  # not before there is an encoder: the header must know of the picture too
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    output.mux(encoder.encode(None))
    left_out = follower.list_left_out()
    if not painted and not request.nothing:
        raise LeftOut("; ".join(left_out) or "no face found in any frame")
    return left_out


def make_up_video(
    source: Path, target: Path, model: nn.Module, models: FaceModels, request: Request
) -> list[str]:
    """Put makeup on a video and write it; return why some of its faces get none.

    Where that fails, or is interrupted, `target` is removed.

    Raises:
        LeftOut: it cannot be read, or no face in it gets makeup.
        UserError: it cannot be written, or PyAV is missing.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install -r requirements.txt") from None
    from tinybeauty.devices import keep_freed_memory

    keep_freed_memory()  # a frame takes a seventh less time
    try:
        # FFmpeg's own writer of .m4v knows no H.265.
        container = "mp4" if target.suffix.lower() == ".m4v" else None
        with (
            # Absolute: FFmpeg takes what stands before a colon for a protocol, and a colon may be in a name.
            av.open(str(source.absolute()), metadata_errors="replace") as opened,
            av.open(str(target.absolute()), "w", format=container) as output,
        ):
            return encode_video(opened, output, model, models, request, source.name)
    except BaseException as error:
        with suppress(OSError):
            target.unlink()
        if isinstance(error, av.FFmpegError | ValueError):  # PyAV's, of sound that a container cannot hold
            raise LeftOut(f"FFmpeg says: {one_line(error)}") from None
        raise
