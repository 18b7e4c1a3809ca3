"""Pairs as tensors: pixels come through unchanged, batches are mirrored as asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinybeauty.cache import decode_pairs
from tinybeauty.pairs import find_pairs
from tinybeauty.variation import Plan
from tinybeauty_training import MakeupPairs, load_batches


def save_random_pair(folder: Path, stem: str, seed: int, mask: bool = True) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("source", "target", "eye_mask")[: 3 if mask else 2]:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        shape = (16, 16) if kind == "eye_mask" else (16, 16, 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / kind / f"{stem}.png")


@pytest.fixture
def pairs(tmp_path) -> MakeupPairs:
    """Four pairs of noise, the third without a mask."""
    for index in range(4):
        save_random_pair(tmp_path, f"p{index}", index, mask=index != 2)
    files = find_pairs(tmp_path)
    return MakeupPairs(files, decode_pairs(files, 16, folder=None, skip_bad=False))


def test_pixels_come_through_unchanged(pairs, tmp_path):
    assert len(pairs) == 4
    for index in range(4):
        for kind, tensor in zip(("source", "target", "eye_mask"), pairs[index], strict=True):
            path = tmp_path / kind / f"p{index}.png"
            if path.exists():
                expected = np.array(Image.open(path)).reshape(16, 16, -1).transpose(2, 0, 1)
                assert np.array_equal(tensor.mul(255).round().byte().numpy(), expected)
                assert tensor.dtype == torch.float32
                assert tensor.max() <= 1


def test_a_pair_without_a_mask_is_white_everywhere(pairs):
    assert pairs.has_mask.tolist() == [True, True, False, True]
    assert pairs[2][2].min() == 1


def test_a_loop_over_the_pairs_ends(pairs):
    assert len(list(pairs)) == 4
    assert torch.equal(pairs[-1][0], pairs[3][0])
    with pytest.raises(IndexError):
        pairs[4]


def test_pairs_that_the_cache_lacks_are_left_out(pairs, tmp_path):
    files = find_pairs(tmp_path)
    (tmp_path / "source" / "p1.png").write_bytes(b"")
    some = MakeupPairs(files, decode_pairs(files, 16, folder=None, skip_bad=True))
    assert some.stems == ["p0", "p2", "p3"]
    assert some.has_mask.tolist() == [True, False, True]
    assert some.checksums == {stem: pairs.checksums[stem] for stem in some.stems}
    for index, number in enumerate((0, 2, 3)):
        assert torch.equal(some[index][1], pairs[number][1])


# --- batches ----------------------------------------------------------------------------------------


def test_source_target_and_mask_are_flipped_together(pairs):
    flipped = torch.tensor([True, False, False, True])  # a number each
    indices = torch.tensor([3, 1, 0])
    batch = next(load_batches(pairs, [indices], torch.device("cpu"), Plan(indices, flipped, None)))
    for kind, images in enumerate(batch):
        for image, index, flip in zip(images, indices, flipped[indices], strict=True):
            plain = pairs[int(index)][kind]
            assert torch.equal(image, plain.flip(-1) if flip else plain)
            assert not torch.equal(image, plain if flip else plain.flip(-1))


def test_a_batch_is_not_flipped_unasked(pairs):
    batch = next(load_batches(pairs, [torch.tensor([1, 2])], torch.device("cpu")))
    for kind, images in enumerate(batch):
        assert torch.equal(images[0], pairs[1][kind])
        assert torch.equal(images[1], pairs[2][kind])
