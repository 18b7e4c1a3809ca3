"""Feed the readers mutated images and mutated checkpoints: a clean error or a valid result, nothing else.

    python tests/fuzz_inputs.py --count 2000

Mutates valid files of all formats and modes (bits, bytes, runs, cuts, copies, lengths) and reads them
with `read_image`, `load_model` and the loader of a run's state; photos are opened, painted on and written as
tinybeauty_apply.py does. Fails on any other exception than UserError or, of a photo, LeftOut, on an image
of a wrong shape, on a network or a state that differs from the original without an error, on more than 10 s
for one file, and on more than 2 GiB of memory above the start (RLIMIT_AS).
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinybeauty.colour import ADOBE_RGB, make_profile
from tinybeauty.devices import ALONE
from tinybeauty.errors import LeftOut, UserError
from tinybeauty.formats import SIGNATURE, write_deep
from tinybeauty.images import read_image
from tinybeauty.photos import open_photo
from tinybeauty.shipping import RUN_FORMAT, load_content, pack, pack_state, to_bytes
from tinybeauty_training import Config, Run, TinyBeauty, load_model

SECONDS_A_FILE = 10
MEMORY_BYTES = 2 * 2**30


def make_images() -> dict[str, bytes]:
    """Return small valid files: {name: content}."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    files = {}
    for suffix, modes in {
        "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "jpg": ("L", "RGB", "CMYK"),
        "webp": ("RGB", "RGBA"),
        "bmp": ("1", "L", "P", "RGB"),
    }.items():
        for mode in modes:
            picture = (
                colour.convert("L").convert("I").convert("I;16") if mode == "I;16" else colour.convert(mode)
            )
            buffer = io.BytesIO()
            picture.save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
            files[f"{mode.replace(';', '')}.{suffix}"] = buffer.getvalue()
    buffer = io.BytesIO()
    colour.save(buffer, "PNG", save_all=True, append_images=[colour.rotate(90), colour.rotate(180)])
    files["animated.png"] = buffer.getvalue()
    return files


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one to eight random changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        where = rng.randrange(max(len(data), 1))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[where] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[where] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del data[where:]
        elif kind == 3:
            data[where : where + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))
        elif kind == 4:
            data[where:where] = data[where : where + rng.randrange(1, 200)]
        else:
            del data[where : where + rng.randrange(1, 200)]
    return bytes(data)


@contextmanager
def expect_clean_end(path: Path, ends: Counter[str], valid: str) -> Iterator[None]:
    """Count a read as `valid`, or as an error where it is a UserError of one line that names the file."""
    signal.alarm(SECONDS_A_FILE)
    try:
        yield
        ends[valid] += 1
    except UserError as error:
        assert str(path) in str(error), error
        assert "\n" not in str(error), error
        ends["error"] += 1
    finally:
        signal.alarm(0)


def fuzz_images(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """Read mutated images; return how they ended."""
    files, ends = make_images(), Counter()
    for _ in range(count):
        name = rng.choice(sorted(files))
        path = folder / name
        path.write_bytes(mutate(files[name], rng))
        mode = rng.choice(("RGB", "L"))
        with expect_clean_end(path, ends, "image"):
            pixels = read_image(path, mode, 32)
            assert pixels.shape == (32, 32, 3 if mode == "RGB" else 1), pixels.shape
            assert pixels.dtype == np.uint8, pixels.dtype
    return ends


def make_photos() -> dict[str, bytes]:
    """Return small valid photos as tinybeauty_apply.py edits them: {name: content}."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    said = {"exif": exif.tobytes(), "icc_profile": make_profile(ADOBE_RGB, 563 / 256)}
    kinds = {
        "a.jpg": ("RGB", "JPEG", {"comment": b"hello", **said}),
        "progressive.jpg": ("RGB", "JPEG", {"progressive": True, "subsampling": 1}),
        "cmyk.jpg": ("CMYK", "JPEG", {}),
        "a.png": ("RGBA", "PNG", said),
        "palette.png": ("P", "PNG", {}),
        "a.webp": ("RGB", "WEBP", said),
        "lossless.webp": ("RGBA", "WEBP", {"lossless": True}),
        "a.bmp": ("RGB", "BMP", {}),
        "a.tif": ("RGB", "TIFF", said),
        "packed.tif": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    }
    files = {"deep.png": b"".join((SIGNATURE, *write_deep(np.asarray(colour).astype(np.uint16) * 257)))}
    for name, (mode, kind, options) in kinds.items():
        buffer = io.BytesIO()
        colour.convert(mode).save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def fuzz_photos(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """Open mutated photos, paint on them and write them; return how they ended."""
    files, ends = make_photos(), Counter()
    residual, way = np.full((256, 256, 3), 25, np.float32), np.array(((6.0, 0, -30), (0, 6.0, -20)))
    for number in range(count + len(files)):
        whole = number < len(files)  # first of all each as it is
        name = sorted(files)[number] if whole else rng.choice(sorted(files))
        path = folder / name
        path.write_bytes(files[name] if whole else mutate(files[name], rng))
        signal.alarm(SECONDS_A_FILE)
        try:
            photo = open_photo(path)
            photo.to_upright()
            photo.lay_residual(residual, way)
            with Image.open(io.BytesIO(photo.encode())) as written:
                written.load()
                assert written.size == photo.image.size, name
            ends["photo"] += 1
        except LeftOut as reason:
            assert not whole, f"{name}: {reason}"
            assert "\n" not in str(reason), reason
            ends["left out"] += 1
        finally:
            signal.alarm(0)
    return ends


def equal(left: object, right: object) -> bool:
    """Compare nested dictionaries, lists, tensors and numbers."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(equal(left[k], right[k]) for k in left)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(*pair) for pair in zip(left, right, strict=True))
    return left == right


def fuzz_checkpoints(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """Read mutated networks and states; return how they ended."""
    torch.manual_seed(0)
    network = to_bytes(pack(TinyBeauty()) | {"epoch": 1, "metrics": {"val/psnr": 30.0}})
    run = Run(Config(), TinyBeauty(), torch.device("cpu"), torch.float32, ALONE)
    state = pack_state({"config": Config().model_dump(), "checksums": {"face": 1}} | run.state())
    originals = {"network.pt": network, "state.ckpt": state}
    readers = {
        "network.pt": lambda path: load_model(path).state_dict(),
        "state.ckpt": lambda path: load_content(path, RUN_FORMAT),
    }
    for name, content in originals.items():
        (folder / name).write_bytes(content)
    wanted = {name: reader(folder / name) for name, reader in readers.items()}
    ends = Counter()
    for _ in range(count):
        name = rng.choice(("network.pt", "network.pt", "network.pt", "state.ckpt"))
        path = folder / f"mutated_{name}"
        path.write_bytes(mutate(originals[name], rng))
        with expect_clean_end(path, ends, "unharmed"):
            content = readers[name](path)
            assert equal(content, wanted[name]), f"{name}: read without an error, but differs"
    return ends


def bound_memory() -> None:
    """Let this process have 2 GiB of address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="images, and as many photos and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bound_memory()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(options.seed)
        images = fuzz_images(options.count, rng, Path(folder))
        print(f"{options.count} images: {dict(images)}; {time.monotonic() - started:.0f} s")
        photos = fuzz_photos(options.count, rng, Path(folder))
        print(f"{options.count} photos: {dict(photos)}; {time.monotonic() - started:.0f} s")
        checkpoints = fuzz_checkpoints(options.count, rng, Path(folder))
        print(f"{options.count} checkpoints: {dict(checkpoints)}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
