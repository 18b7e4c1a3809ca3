"""A look on videos: the real command on drawn ones. Skipped where the face models cannot be had."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw_couple
from make_demo import draw_pair
from PIL import Image

from tinybeauty.blending import Request
from tinybeauty.face_models import load_face_models
from tinybeauty.faces import find_faces
from tinybeauty.following import Followed, Follower, cut_square
from tinybeauty.landmarks import UPPER_LID
from tinybeauty.videos import paint_frame, to_picture, view_planes
from tinybeauty_apply import main, open_look

av = pytest.importorskip("av", reason="PyAV is not installed")
LOOK = ROOT / "tinybeauty_model" / "pretrained" / "evening.pt"
SIZE = (352, 288)
RATE = Fraction(24000, 1001)


def draw_frames(count: int, faces: bool = True) -> list[np.ndarray]:
    """Return frames of a drawn person who moves to the right, with a camera's noise."""
    person, rng = Image.fromarray(draw_pair(7, 256, 42)[0]), np.random.default_rng(0)
    frames = []
    for number in range(count):
        picture = Image.new("RGB", SIZE, (110, 120, 115))
        if faces:
            picture.paste(person, (20 + number, 16))
        frames.append(
            (np.asarray(picture) + rng.normal(0, 2, (*SIZE[::-1], 3))).clip(0, 255).astype(np.uint8)
        )
    return frames


def write_video(
    path: Path, frames: list[np.ndarray], codec: str = "libx264", pixels: str = "yuv420p", rotation: int = 0
) -> Path:
    """Write frames, and a tone of the same length."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4v" else None) as file:
        picture = file.add_stream(codec, rate=RATE, options={"crf": "12"})
        picture.width, picture.height, picture.pix_fmt = *frames[0].shape[1::-1], pixels
        if rotation:
            picture.set_display_rotation(rotation)
        sound = file.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000, layout="mono")
        for number, frame in enumerate(frames):
            file.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            tone = np.sin(np.arange(2002 * number, 2002 * (number + 1)) / 17) * 8000
            samples = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], format="s16", layout="mono")
            samples.sample_rate, samples.pts = 48000, 2002 * number
            file.mux(sound.encode(samples))
        file.mux(picture.encode(None))
        file.mux(sound.encode(None))
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], dict[str, object], list[bytes]]:
    """Return the frames (H, W, 3), what is said about them, and the packets of the sound."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        first = frames[0]
        about = {
            "size": (first.width, first.height),
            "rotation": first.rotation,
            "format": first.format.name,
            "rate": stream.average_rate,
            "times": [float(frame.time) for frame in frames],
        }
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in frames]
    with av.open(str(path)) as file:
        return pictures, about, [bytes(packet) for packet in file.demux(audio=0) if packet.size]


@pytest.fixture
def apply(face_models, capsys):
    """Return a function that runs the command in this process: (exit code, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in (*argv, "--look", LOOK, "--face_models", face_models)])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "rotation"),
    [
        ("a.mp4", "libx264", "yuv420p", 0),
        ("turned.mov", "libx264", "yuv420p", -90),
        ("full.mkv", "libx264", "yuv444p", 0),
        ("deep.mp4", "libx265", "yuv420p10le", 0),
        ("deep.m4v", "libx265", "yuv420p10le", 0),
        ("b.webm", "libvpx-vp9", "yuv420p", 0),
    ],
)
def test_size_rate_rotation_and_sound_stay(apply, tmp_path, name, codec, pixels, rotation):
    source = write_video(tmp_path / name, draw_frames(6), codec, pixels, rotation)
    code, stdout, stderr = apply(source, "--out", tmp_path / "out")
    assert (code, stdout, stderr) == (0, f"1 of 1 written to {tmp_path / 'out'}\n", "")
    before, about, sound = read_video(source)
    after, about_after, sound_after = read_video(tmp_path / "out" / name)
    assert about_after == about
    assert sound_after == sound
    for one, other in zip(before, after, strict=True):
        change = np.abs(other - one).max(2)
        assert change[60:250, 60:240].max() > 40  # the makeup, from the first frame on
        assert change[:, :12].mean() < 4  # compressed anew, otherwise the same
    again = apply(source, "--out", tmp_path / "out")
    assert again[1] == f"0 of 1 written to {tmp_path / 'out'}, 1 were there already\n"


def test_colours_of_rgb_stay_at_every_size(apply, tmp_path):
    """Players take another matrix from 720 lines on."""
    frame = np.full((720, 960, 3), (200, 40, 40), np.uint8)
    frame[100:388, 100:452] = draw_frames(1)[0]
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 960, 720, "bgr0"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    assert apply(tmp_path / "a.mkv", "--out", tmp_path / "out")[2] == ""
    with av.open(str(tmp_path / "out" / "a.mkv")) as file:
        shown = next(file.decode(video=0)).reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    assert np.abs(shown[500:, 600:].astype(int) - (200, 40, 40)).max() <= 6


def test_languages_titles_and_chapters_stay_and_a_colon_in_a_name(apply, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_video(Path("take.mp4"), draw_frames(2))
    named = Path("12:30.mkv")
    with av.open(str(source)) as old, av.open(str(named.absolute()), "w") as new:
        chapter = {"id": 1, "start": 0, "end": 50, "time_base": Fraction(1, 1000)}
        new.set_chapters([chapter | {"metadata": {"title": "one"}}])
        copies = [new.add_stream_from_template(stream) for stream in old.streams]
        copies[1].metadata.update({"language": "deu", "title": "commentary"})
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    assert apply(named, "--out", "out")[2] == ""
    with av.open(str((Path("out") / named).absolute())) as file:
        sound = file.streams.audio[0].metadata
        assert (sound["language"], sound["title"]) == ("deu", "commentary")
        assert [part["metadata"]["title"] for part in file.chapters()] == ["one"]


def test_pictures_of_two_sizes_are_left_out_with_a_remedy(apply, tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 352, 288, "yuvj420p"
        for number, frame in enumerate((draw_frames(1)[0], np.rot90(draw_frames(1)[0]).copy())):
            data = io.BytesIO()
            Image.fromarray(frame).save(data, "JPEG")
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts = stream, 40 * number, 40 * number
            packet.time_base, packet.is_keyframe = Fraction(1, 1000), True
            file.mux(packet)
    assert "its pictures change their size" in apply(tmp_path / "a.mkv", "--out", tmp_path / "out")[2]


def test_subtitles_stay(apply, tmp_path):
    source = write_video(tmp_path / "a.mp4", draw_frames(2))
    (tmp_path / "a.srt").write_text("1\n00:00:00,010 --> 00:00:00,030\nHallo\n\n")
    parts = [av.open(str(path)) for path in (source, tmp_path / "a.srt")]
    with parts[0], parts[1], av.open(str(tmp_path / "b.mkv"), "w") as new:
        copies = {stream: new.add_stream_from_template(stream) for part in parts for stream in part.streams}
        copies[parts[1].streams[0]].metadata["language"] = "deu"
        for packet in (packet for part in parts for packet in part.demux()):
            if packet.dts is not None:
                packet.stream = copies[packet.stream]
                new.mux(packet)
    assert apply(tmp_path / "b.mkv", "--out", tmp_path / "out")[2] == ""
    with av.open(str(tmp_path / "out" / "b.mkv")) as file:
        (stream,) = file.streams.subtitles
        assert stream.metadata["language"] == "deu"
        assert b"Hallo" in b"".join(bytes(packet) for packet in file.demux(stream))


def test_a_webm_of_10_bits_is_left_out_with_a_remedy(apply, tmp_path):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("nothing here writes one")
    source = write_video(tmp_path / "a.webm", draw_frames(1), "libsvtav1", "yuv420p10le")
    assert "save it as .mp4 or .mkv" in apply(source, "--out", tmp_path / "out")[2]


def test_cheek_to_cheek_each_face_has_its_own_makeup(apply, face_models, tmp_path):
    couple = draw_couple()
    source = write_video(tmp_path / "a.mp4", [np.asarray(couple)] * 2)
    frames = {}
    for which in ("all", "largest"):
        assert apply(source, "--faces", which, "--out", tmp_path / which)[2] == ""
        frames[which] = read_video(tmp_path / which / "a.mp4")[0][1]
    first, second = find_faces(couple, load_face_models(face_models)).faces
    for face, same in ((first, True), (second, False)):  # the eye next to the other face
        eyes = [face.points[list(eye)].mean(0).astype(int) for eye in UPPER_LID]
        x, y = min(eyes, key=lambda eye: abs(eye[0] - couple.width / 2))
        around = slice(y - 12, y + 13), slice(x - 16, x + 17)
        apart = np.abs(frames["all"][around] - frames["largest"][around])
        assert apart.mean() < 3 if same else apart.mean() > 10


def test_before_and_after_side_by_side(apply, tmp_path):
    frames = draw_frames(4)
    plain, turned = (write_video(tmp_path / f"{turn}.mp4", frames, rotation=turn) for turn in (0, -90))
    assert apply(plain, turned, "--out", tmp_path / "out", "--compare")[0] == 0
    both, about, _ = read_video(tmp_path / "out/0_compare.mp4")
    assert about["size"] == (704, 288)
    assert np.abs(both[0][:, :352] - frames[0]).mean() < 4
    assert np.abs(both[0][:, 352:] - both[0][:, :352]).max() > 40
    both, about, _ = read_video(tmp_path / "out/-90_compare.mp4")
    assert (about["size"], about["rotation"]) == ((352, 576), -90)
    upright = np.rot90(both[0], -1)  # as it is shown
    assert np.abs(np.rot90(upright[:, :288]) - frames[0]).mean() < 4
    assert np.abs(upright[:, 288:] - upright[:, :288]).max() > 40


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_odd_sizes(apply, tmp_path, name):
    frames = [np.ascontiguousarray(frame[1:, 1:]) for frame in draw_frames(2)]
    source = write_video(tmp_path / name, frames, "libvpx-vp9")
    for flags in ([], ["--compare"]):
        assert apply(source, "--out", tmp_path / "out", *flags)[2] == ""
    after, about, _ = read_video(tmp_path / "out" / name)
    both, about_both, _ = read_video((tmp_path / "out" / name).with_stem("a_compare"))
    assert (about["size"], about_both["size"]) == ((351, 287), (702, 287))
    assert np.abs(both[0][:, :351] - frames[0]).mean() < 6
    assert np.abs(both[0][:, 351:] - after[0]).mean() < 4


def test_outside_the_square_the_planes_are_the_same(face_models):
    for pixels in ("yuv420p", "yuv444p", "yuvj420p", "yuv420p10le"):
        frame = av.VideoFrame.from_ndarray(draw_frames(1)[0], format="rgb24").reformat(format=pixels)
        before = [plane.copy() for plane in view_planes(frame)]
        picture = to_picture(frame)
        face = Follower(load_face_models(face_models), Request()).follow(picture)[0]
        points = 0.4 * face.points + (100, 70)  # a small face, so that there is much outside
        paint_frame(frame, Followed(points, cut_square(picture, points), 1.0), [], open_look(LOOK), Request())
        for plane, old in zip(view_planes(frame), before, strict=True):
            change = np.abs(plane.astype(int) - old)[..., 0]
            assert change.max() > 0
            assert change[: change.shape[0] // 6].max() == change[:, : change.shape[1] // 6].max() == 0


def test_the_largest_face_alone_has_a_weight(face_models):
    follower = Follower(load_face_models(face_models), Request(which="largest"))
    assert [one.weight for one in follower.follow(draw_couple())] == [1.0, 0.0]


def test_makeup_stays_with_one_face_until_another_is_clearly_larger(face_models):
    follower = Follower(load_face_models(face_models), Request(which="largest"))
    view = Image.new("RGB", (9, 9))
    shape = np.stack(np.meshgrid([0, 100], [0, 120]), -1).reshape(-1, 2).astype(float)

    def see(*widths: int) -> list[float]:
        """Return the shares of two faces, side by side, of these widths in percent; the first is before."""
        before = sorted(follower.followed, key=lambda one: one.points[0, 0]) or [None, None]
        follower.followed = sorted(
            (Followed(shape * width / 100 + (500 * side, 0), view, 1.0, "", old and old.share)
             for side, (width, old) in enumerate(zip(widths, before, strict=True))),
            key=lambda one: -one.width,
        )  # fmt: skip
        follower.followed = follower.share_out()
        return [one.share for one in sorted(follower.followed, key=lambda one: one.points[0, 0])]

    assert see(102, 100) == [1.0, 0.0]
    assert see(100, 102) == [1.0, 0.0]
    assert see(100, 120) == pytest.approx([0.8, 0.2])
    assert see(102, 100) == pytest.approx([1.0, 0.0])
    for _ in range(5):
        shares = see(100, 120)
    assert shares == pytest.approx([0.0, 1.0])
    assert see(110, 100) == pytest.approx([0.0, 1.0])


def test_a_still_face_does_not_shimmer(face_models):
    """On photos it moves by 0.05 to 0.2 px RMS of 256, and flickers 0.97 to 0.99 times as the video."""
    rng = np.random.default_rng(0)
    base = np.asarray(Image.fromarray(draw_pair(7, 256, 42)[0])).astype(float)
    follower = Follower(load_face_models(face_models), Request())
    quads, before, after = [], [], []
    for _ in range(16):
        picture = (base + rng.normal(0, 3, base.shape)).clip(0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")
        before.append(view_planes(frame)[0].astype(float))
        one = follower.follow(Image.fromarray(picture))[0]
        paint_frame(frame, one, [], open_look(LOOK), Request())
        after.append(view_planes(frame)[0].astype(float))
        corners = one.points[[33, 263, 61, 291]]
        quads.append(corners)
    moved = np.stack(quads[4:])
    assert np.sqrt(((moved - moved.mean(0)) ** 2).sum(2).mean()) < 0.5
    touched = np.abs(after[-1] - before[-1])[..., 0] > 3
    flicker = [np.std(frames[4:], axis=0)[touched].mean() for frames in (before, after)]
    assert flicker[1] < 1.2 * flicker[0]


def test_a_face_that_comes_and_goes(face_models):
    follower = Follower(load_face_models(face_models), Request())
    wall, person = (Image.fromarray(draw_frames(1, faces)[0]) for faces in (False, True))
    assert follower.follow(wall) == []
    for _ in range(12):
        seen = follower.follow(person)
    assert [one.weight for one in seen] == [1.0]
    assert follower.follow(wall) == []


def test_faces_without_makeup_are_named(apply, tmp_path):
    frames = draw_frames(3)
    grey = [frame.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8) for frame in frames]
    write_video(tmp_path / "grey.mp4", grey)
    code, stdout, stderr = apply(tmp_path / "grey.mp4", "--out", tmp_path / "out")
    assert (code, stdout) == (1, f"0 of 1 written to {tmp_path / 'out'}\n")
    assert "in frame 1: grey: " in stderr
    good = write_video(tmp_path / "good.mp4", frames)
    code, stdout, stderr = apply(good, "--out", tmp_path / "out", "--smallest", "400")
    assert code == 1
    assert "in frame 1: too small: " in stderr and "400 are needed" in stderr


def test_videos_that_cannot_be_done(apply, tmp_path):
    write_video(tmp_path / "wall.mp4", draw_frames(3, faces=False))
    good = write_video(tmp_path / "cut.mp4", draw_frames(3)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.mov").touch()
    write_video(tmp_path / "a.mkv", draw_frames(1)).rename(tmp_path / "named.webm")
    code, stdout, stderr = apply(tmp_path, "--out", tmp_path / "out")
    assert (code, stdout) == (1, f"0 of 4 written to {tmp_path / 'out'}\n")
    lines = stderr.splitlines()
    assert lines[0] == "error: 4 could not be done:"
    assert f"  {tmp_path / 'wall.mp4'}: no face found in any frame" in lines
    assert any(line.startswith(f"  {tmp_path / 'cut.mp4'}: FFmpeg says: ") for line in lines)
    assert any(line.startswith(f"  {tmp_path / 'empty.mov'}: ") for line in lines)
    assert f"  {tmp_path / 'named.webm'}: FFmpeg says: 'webm' format does not support 'aac' codec" in lines
    assert not list((tmp_path / "out").glob("*.m*"))
    assert not list((tmp_path / "out").glob(".*.m*"))


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_leaves_no_half_video(face_models, tmp_path):
    source = write_video(tmp_path / "long.mp4", draw_frames(8) * 30)
    command = [
        sys.executable,
        ROOT / "tinybeauty_apply.py",
        source,
        "--look",
        LOOK,
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        [*command, "--face_models", face_models], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    partial = tmp_path / "out" / ".long.mp4.partial.mp4"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip().endswith("stopped; the same command goes on where it was")
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not list((tmp_path / "out").glob("*.mp4")) and not partial.exists()
