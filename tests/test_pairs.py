"""Pairs by stem, whatever people name their files, and the split by person."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinybeauty.errors import UserError
from tinybeauty.files import lock_folder
from tinybeauty.pairs import Pair, count_variants, draw_demo_pairs, find_pairs, find_people, split_pairs

EVERYONE = "(.+)"
ODD_NAMES = ("Anna Maria", "anna.b.c", "Zoë 愛", "1", "10", "-x", "image_0000")

# --- finding pairs ----------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def find_error(data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_pairs(data_dir)
    return str(caught.value)


# --- finding pairs ----------------------------------------------------------------------------------


def test_pairs_are_two_files_of_one_stem_whatever_the_suffix(tmp_path):
    touch(tmp_path / "source", "b.png", "a.jpg", "c.d.WEBP", "e.bmp")
    touch(tmp_path / "target", "a.jpeg", "b.bmp", "c.d.PNG", "e.png")
    touch(tmp_path / "eye_mask", "b.jpg", "of_nobody.png")
    pairs = find_pairs(tmp_path)
    assert [pair.stem for pair in pairs] == ["a", "b", "c.d", "e"]
    for pair in pairs:
        assert pair.source.parent.name == "source"
        assert pair.target.parent.name == "target"
        assert pair.source.stem == pair.target.stem == pair.stem
    masks = [pair.eye_mask for pair in pairs]
    assert masks == [None, tmp_path / "eye_mask" / "b.jpg", None, None]


def test_1_is_not_10(tmp_path):
    touch(tmp_path / "source", "1.png", "10.png", "100.png")
    touch(tmp_path / "target", "1.png", "10.png", "100.png")
    assert [(pair.source.stem, pair.target.stem) for pair in find_pairs(tmp_path)] == [
        ("1", "1"), ("10", "10"), ("100", "100"),
    ]  # fmt: skip
    (tmp_path / "target" / "1.png").unlink()
    assert find_error(tmp_path).split("source: ")[1].split()[0] == "1"


def test_missing_partners_of_both_sides_are_named_at_once(tmp_path):
    touch(tmp_path / "source", "both.png", *(f"bare_{number}.png" for number in range(7)))
    touch(tmp_path / "target", "both.png", "made_0.png")
    message = find_error(tmp_path)
    assert "7 of the 8" in message
    assert "1 of the 2" in message
    assert str(tmp_path / "target") in message
    assert "made_0" in message
    for number in range(7):
        assert (f"bare_{number}" in message) == (number < 5)
    assert "2 more" in message


@pytest.mark.parametrize("missing", ["", "source", "target"])
def test_a_missing_folder_is_named(tmp_path, missing):
    for name in {"source", "target"} - {missing}:
        touch(tmp_path / "data" / name, "a.png")
    data_dir = tmp_path / "data" if missing else tmp_path / "elsewhere"
    assert str(data_dir / missing) in find_error(data_dir)


def test_no_pairs(tmp_path):
    touch(tmp_path / "source", "notes.txt", ".hidden.png")
    touch(tmp_path / "target")
    message = find_error(tmp_path)
    assert str(tmp_path / "source") in message
    assert ".png" in message


def test_odd_names_pair_up_and_system_files_are_passed_over(tmp_path):
    for kind in ("source", "target"):
        (tmp_path / kind).mkdir()
        for name in ODD_NAMES:
            Image.new("RGB", (8, 8)).save(tmp_path / kind / f"{name}.png")
        for name in (".DS_Store", "Thumbs.db", "._1.png", "notes.txt"):
            (tmp_path / kind / name).write_bytes(b"x")
    assert sorted(pair.stem for pair in find_pairs(tmp_path)) == sorted(ODD_NAMES)


STEMS = st.sets(st.sampled_from([*ODD_NAMES, "a", "A1", "b 2", "c..d"]))


@settings(max_examples=60, deadline=None)
@given(source=STEMS, target=STEMS)
def test_pairs_are_the_same_stems_or_an_error_names_the_rest(tmp_path_factory, source, target):
    folder = tmp_path_factory.mktemp("pairs")
    for kind, stems in (("source", source), ("target", target)):
        (folder / kind).mkdir()
        for number, stem in enumerate(sorted(stems)):
            (folder / kind / (stem + (".png", ".JPG", ".webp")[number % 3])).touch()
    if source and source == target:
        assert {pair.stem for pair in find_pairs(folder)} == source
        return
    with pytest.raises(UserError) as caught:
        find_pairs(folder)
    for stem in sorted(source ^ target)[:1]:
        assert stem in str(caught.value)


def test_eye_masks_of_no_pair_are_said_aloud(tmp_path, capsys):
    for folder, name in (("source", "a.png"), ("target", "a.png"), ("eye_mask", "a.png")):
        touch(tmp_path / folder, name)
    find_pairs(tmp_path)
    assert capsys.readouterr().out == ""
    touch(tmp_path / "eye_mask", "b.png", "c.png")
    find_pairs(tmp_path)
    assert "2 eye masks belong to no pair: b, c" in capsys.readouterr().out


def test_a_demo_that_cannot_be_drawn_is_an_error(tmp_path):
    (tmp_path / "tool.py").write_text("import sys; sys.exit('no pencil')")
    with pytest.raises(UserError, match="could not be drawn"):
        draw_demo_pairs(tmp_path / "tool.py", tmp_path / "demo")


def test_two_runs_that_want_the_demo_at_once_draw_it_once(tmp_path, capsys):
    """The second used to delete what the first had drawn so far."""
    tool, demo = tmp_path / "tool.py", tmp_path / "new" / "demo"
    tool.write_text(
        "import subprocess, sys\n"
        f"open({str(tmp_path / 'drawn')!r}, 'a').write('once ')\n"
        f"words = [{str(ROOT / 'data' / 'make_demo.py')!r}, *sys.argv[1:], '--count', '12', '--size', '64']\n"
        "sys.exit(subprocess.run([sys.executable, *words]).returncode)\n"
    )
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(draw_demo_pairs, tool, demo) for _ in range(2)]:
            run.result()
    assert (tmp_path / "drawn").read_text() == "once "
    assert len(find_pairs(demo)) == 12
    assert "waiting for another run" in capsys.readouterr().out


def test_a_run_that_writes_beside_the_demo_does_not_wait_for_itself(tmp_path):
    (tmp_path / "tool.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[2]).mkdir()")
    with lock_folder(tmp_path):  # as the run does with its output_dir
        draw_demo_pairs(tmp_path / "tool.py", tmp_path / "demo")
    assert (tmp_path / "demo").is_dir()


# --- splitting --------------------------------------------------------------------------------------


def make_pairs(stems) -> list[Pair]:
    return [Pair(stem, Path(stem), Path(stem), None) for stem in sorted(stems)]


def split(stems, val_fraction=0.1, pattern=EVERYONE) -> tuple[set[str], set[str]]:
    train, val = split_pairs(make_pairs(stems), val_fraction, pattern)
    assert len(train) + len(val) == len(set(stems))
    return {pair.stem for pair in train}, {pair.stem for pair in val}


NAMES = st.text("abcdefgh0123456789_", min_size=1, max_size=8)
BASE = [f"image_{number:04d}" for number in range(100)]


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES, max_size=60))
def test_adding_pairs_moves_no_other_pair(new):
    train, val = split(BASE)
    more_train, more_val = split({*BASE, *new})
    assert train <= more_train
    assert val <= more_val


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(NAMES, st.integers(0, 9)), min_size=2, max_size=80), st.floats(0.05, 0.95))
def test_no_person_is_on_both_sides(looks, val_fraction):
    stems = {f"{name}-look{look}" for name, look in looks}
    if len({name for name, _ in looks}) < 2:
        return
    train, val = split(stems, val_fraction, r"(.+)-look\d")
    assert train
    assert val
    assert not {stem.split("-")[0] for stem in train} & {stem.split("-")[0] for stem in val}


@pytest.mark.parametrize("val_fraction", [0.05, 0.1, 0.3])
def test_the_share_is_near_val_fraction(val_fraction):
    _, val = split([f"face_{number}" for number in range(4000)], val_fraction)
    assert len(val) / 4000 == pytest.approx(val_fraction, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES, min_size=2, max_size=6), st.sampled_from([0.001, 0.1, 0.5, 0.999]))
def test_both_sides_get_someone(stems, val_fraction):
    train, val = split(stems, val_fraction)
    assert train
    assert val


def test_the_split_is_the_same_on_every_machine():
    """Not Python's `hash`, which differs from process to process: these names stay where they are."""
    assert sorted(split(BASE)[1]) == HELD_OUT


HELD_OUT = ["image_0009", "image_0040", "image_0047", "image_0080", "image_0086", "image_0088", "image_0098"]


def test_one_person_cannot_be_split():
    with pytest.raises(UserError, match="anna"):
        split(["anna_1", "anna_2"], pattern=r"(.+)_\d")
    with pytest.raises(UserError, match="at least two"):
        split(["anna"])


def test_a_stem_that_the_pattern_does_not_match_is_named():
    with pytest.raises(UserError, match="berta"):
        split(["anna_1", "berta"], pattern=r"(.+)_\d")


# --- variants ---------------------------------------------------------------------------------------


def test_variants_are_on_their_originals_side_and_never_validated_on():
    people = [f"face_{number}" for number in range(60)]
    stems = sorted(people + [f"{person}~v{number}" for person in people for number in (2, 3, 4)])
    alone_train, alone_val = split_pairs(make_pairs(sorted(people)), 0.2, EVERYONE)
    train, val = split_pairs(make_pairs(stems), 0.2, EVERYONE)
    assert val == alone_val
    assert {pair.stem.split("~")[0] for pair in train} == {pair.stem for pair in alone_train}
    assert len(train) == 4 * len(alone_train)
    assert count_variants([pair.stem for pair in train]) == 3 * len(alone_train)


def test_where_nobody_is_held_out_all_are_trained_on_and_originals_validated_with():
    pairs = make_pairs(["anna", "anna~v2", "bea", "bea~v2"])
    train, val = split_pairs(pairs, 0, EVERYONE)
    assert train == pairs
    assert [pair.stem for pair in val] == ["anna", "bea"]


def test_the_first_variant_stands_in_for_an_original_that_is_gone():
    stems = ["a", "b~v10", "b~v9", "c~v2", "d~v2", "d~v2~v3", "e~2", "~v2"]
    people = {"a": "a", "b~v10": "b", "b~v9": "b", "c~v2": "c", "d~v2": "d", "d~v2~v3": "d"}
    assert find_people(stems, EVERYONE) == people | {"e~2": "e~2", "~v2": "~v2"}
    assert count_variants(stems) == 2
    assert [pair.stem for pair in split_pairs(make_pairs(stems), 0, EVERYONE)[1]] == [
        *("a", "b~v9", "c~v2", "d~v2", "e~2", "~v2")
    ]


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from([f"{name}{end}" for name in BASE[:50] for end in ("", "~v2", "~v10")])))
def test_whatever_is_deleted_nobody_changes_sides(gone):
    before = split(BASE)
    stems = {f"{name}{end}" for name in BASE for end in ("", "~v2", "~v10")} - gone
    train, val = split_pairs(make_pairs(stems), 0.1, EVERYONE)
    assert {pair.stem.split("~")[0] for pair in train} <= before[0]
    assert {pair.stem.split("~")[0] for pair in val} == {stem.split("~")[0] for stem in stems} & before[1]


def test_the_pattern_sees_originals():
    stems = ["anna_look1", "anna_look1~v2", "anna_look2", "bea_look1"]
    people = find_people(stems, r"(.+)_look\d$")
    assert people == dict(zip(stems, ["anna", "anna", "anna", "bea"], strict=True))
