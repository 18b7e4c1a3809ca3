"""A training that begins from a network that ships: which one, with which settings.

A `.pt` trains as it ships, with the BatchNorms folded in: on a handful of pairs that is 0.3 dB better than
with BatchNorms that compute the same at first. tests/README.md has the study. A run's state trains on with
its BatchNorms, which thousands of pairs want: at 256 px after 128, say, or towards another look.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from tinybeauty import runs
from tinybeauty.errors import UserError
from tinybeauty.files import tidy_path
from tinybeauty.images import list_images
from tinybeauty.looks import LOOKS, find_look
from tinybeauty.pairs import find_people
from tinybeauty.settings import Settings, read_yaml
from tinybeauty.shipping import MODEL_FORMAT, RUN_FORMAT, load_content, name_damaged

AUTO = "auto"
FEW = 300  # people; with more than these the settings stay as they are
EPOCHS = 10
BATCH = 8
SEEN = 64  # pairs that a start is fitted to
NOBODY = 30  # people; of fewer nobody is held out

# A look's name, the path of a .pt, auto, or nothing.
StartFrom = Annotated[str, PlainValidator(tidy_path)]
Batch = tuple[Tensor, Tensor, Tensor]  # source, target, eye_mask
Config = TypeVar("Config", bound=Settings)


# --- Which settings -----------------------------------------------------------------------------------
def find_given(config: Settings, flags: Namespace, trial: dict[str, Any]) -> set[str]:
    """Return the keys that a person has chosen: flags, a sweep's, and what a YAML has other than defaults.

    In a YAML that a run has written all are.

    Args:
        config: the settings that these give.
        flags: of the command line; those that were not typed are not in it. `config` is the YAML.
        trial: what a sweep wants to try.
    """
    typed = vars(flags).keys() & type(config).model_fields.keys()
    chosen = read_yaml(flags.config)
    if not runs.is_ours(flags.config):
        default = type(config)()
        chosen = [key for key in chosen if getattr(config, key) != getattr(default, key)]
    return {*typed, *trial, *chosen}


def choose_settings(people: int, pairs: int) -> dict[str, Any]:
    """Return the settings for a start with so few people, of whom there are so many pairs with variants.

    What ends the run before it learns these faces by heart is its number of steps, the rate falling to 0:
    of a handful nobody can be spared to watch over it. With fewer than 8 a tenth of the start stays in the
    average, else next to nothing: it serves others better than what so few pairs can teach.
    """
    steps = 120 if people < NOBODY else 300
    return {
        "val_fraction": 0.0 if people < NOBODY else 0.1,
        "repeats": max(1, round(steps * BATCH / (pairs * EPOCHS))),
        "epochs": max(1, min(EPOCHS, round(steps * BATCH / pairs))),  # fewer where variants make many pairs
        "batch_size": BATCH,
        "learning_rate": 2e-4 if people < 15 else 5e-4,
        "lr_schedule": "linear",
        "ema_decay": 0.98 if people < 8 else 0.96,
        "psnr_weight": 5e-3,
    }


def recall_settings(config: Settings) -> dict[str, Any]:
    """Return what was chosen for the run that goes on in `output_dir`, and its start; {} where there is none.

    Raises:
        UserError: its state is damaged.
    """
    path = Path(config.output_dir) / runs.STATE_FILE
    if not path.is_file():  # said later
        return {}
    with name_damaged(path):
        before = type(config)().model_dump() | load_content(path, RUN_FORMAT)["config"]
    if not before["start_from"]:
        return {}
    keys = [*choose_settings(1, 1)]
    if config.start_from in ("", AUTO):
        keys.append("start_from")
    return {key: before[key] for key in keys}


def count_people(config: Config) -> tuple[int, int]:
    """Return how many people are in `data_dir`, and how many pairs; (0, 0) where its names are wrong."""
    folder = Path(config.data_dir) / "source"
    stems = list(list_images(folder, [])) if folder.is_dir() else []
    with suppress(UserError):  # said later, with all else that is wrong
        return len(set(find_people(stems, config.person_pattern).values())), len(stems)
    return 0, 0


def settle(config: Config, flags: Namespace, trial: dict[str, Any]) -> Config:
    """Return the settings of a run that begins from a look: what nobody has chosen fits the few people.

    A run that goes on keeps its start and what was chosen for it.

    Raises:
        UserError: the state of the run to go on with is damaged, or the look is missing or damaged.
    """
    people, chosen = 0, recall_settings(config) if flags.resume else {}
    if config.start_from and not flags.resume:
        if config.start_from != AUTO:
            path = find_look(config.start_from, AUTO)
            load_content(path, RUN_FORMAT if is_state(path) else MODEL_FORMAT)  # before pairs are decoded
        people, pairs = count_people(config)
        chosen = choose_settings(people, pairs) if 0 < people <= FEW else {}
    if not chosen:
        return config
    given = find_given(config, flags, trial) - {"start_from"}
    chosen = {key: value for key, value in chosen.items() if key not in given}
    if people and chosen:
        told = ", ".join(f"{key} {value}" for key, value in chosen.items())
        print(f"start     {people} people; where nothing else is set: {told}")
        if chosen.get("val_fraction") == 0:
            print("          all pairs are trained on: of so few people nobody is held out")
    return config.model_copy(update=chosen)


# --- Which network ------------------------------------------------------------------------------------
def is_state(start_from: str | Path) -> bool:
    """Tell whether a start is a run's state, with BatchNorms, and no network that ships, without."""
    return str(start_from).endswith(".ckpt")


def load_state(path: Path, build: Callable[[Any], Any]) -> nn.Module:
    """Return the averaged network of a run's state as it trains, on the CPU and in eval mode.

    It has BatchNorms, or none where the run began without: from a `.pt`, or from the state of such a run.

    Args:
        path: the state.
        build: returns the network of some `up_groups`, with any weights.

    Raises:
        UserError: the file is missing or damaged.
    """
    state = load_content(path, RUN_FORMAT)
    with name_damaged(path):
        model = build(state.get("architecture", {"up_groups": 4})["up_groups"])  # it may be older
        if not any(name.endswith("running_mean") for name in state["average"]):
            model.fold_()
        model.load_state_dict(state["average"])
    return model.eval().requires_grad_(True)


@torch.no_grad()
def refit_(folded: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Fit the last layer, a 1x1 convolution, to some pairs by least squares, in place.

    Args:
        folded: the network, in eval mode; its last layer is `out`.
        batches: (source, target, eye_mask) each.

    Returns:
        the gain over doing nothing on each of the pairs, (N,) in dB.
    """
    seen: list[Tensor] = []
    hook = folded.out.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    parts, pixels = [], 0
    for source, target, _ in batches:
        folded(source)
        for features, wanted in zip(seen.pop(), target - source, strict=True):
            rows = features.flatten(1).double()  # (C, pixels)
            rows = torch.cat([rows, torch.ones_like(rows[:1])])  # the bias
            aim = wanted.flatten(1).double()  # (3, pixels)
            parts.append((rows @ rows.T, rows @ aim.T, aim.square().sum()))
            pixels += rows.shape[1]
    hook.remove()
    products, sums, energies = (torch.stack(part) for part in zip(*parts, strict=True))  # one of each pair
    before = torch.cat([folded.out.weight.flatten(1), folded.out.bias[:, None]], 1).double().T  # (C + 1, 3)
    # A little ridge around what is there: features that are never seen keep their weights.
    ridge = 1e-6 * pixels * torch.eye(len(before), dtype=before.dtype, device=before.device)
    fitted = torch.linalg.solve(products.sum(0) + ridge, sums.sum(0) + ridge @ before)
    folded.out.weight.copy_(fitted[:-1].T[:, :, None, None])
    folded.out.bias.copy_(fitted[-1])
    errors = energies - 2 * (fitted * sums).sum((1, 2)) + (fitted * (products @ fitted)).sum((1, 2))
    return 10 * (energies / errors.clamp_min(1e-9)).clamp_min(1e-9).log10()


def find_worst(gains: Tensor) -> float:
    """Return the mean gain of the worst tenth of the pairs, at least of one, in dB."""
    return gains.sort().values[: max(len(gains) // 10, 1)].mean().item()


def judge(gains: Tensor) -> float:
    """Return what a look may gain on people whom it serves badly, in dB.

    That is as far below the worst of the pairs as the worst is below their mean: a handful of people is not
    all whom a look is for. The mean is carried by those whom it happens to fit, and the worst of a few is not
    the worst of all. tests/README.md has an example.
    """
    return 2 * find_worst(gains) - gains.mean().item()


def choose_batches(count: int) -> Sequence[Tensor]:
    """Return the numbers of the pairs that a start is fitted to, (B,) each: 64 from all over, or all."""
    return torch.linspace(0, count - 1, min(count, SEEN)).round().long().split(BATCH)


def begin(
    config: Config, load: Callable[[Path], nn.Module], build: Callable[[Any], nn.Module], seen: list[Batch]
) -> tuple[nn.Module, Config]:
    """Return the network that `start_from` says, its last layer fitted to the pairs; say how well it fits.

    Args:
        config: has `start_from`; `auto` is the look of those that ship that fits best, see `judge`.
        load: returns the network of a `.pt`, folded, on the CPU.
        build: returns the network of some `up_groups`, for a state.
        seen: (source, target, eye_mask) of some pairs, on the CPU.

    Returns:
        the network, and the settings with the name of the look in place of `auto`.

    Raises:
        UserError: the look is missing or damaged.
    """
    is_auto = config.start_from == AUTO
    tried = []
    paths = sorted(LOOKS.glob("*.pt")) if is_auto else [find_look(config.start_from, AUTO)]
    if not paths:
        raise UserError(f"start_from {AUTO} finds no look in {LOOKS}; give the path of a .pt")
    for path in paths:
        model = load_state(path, build) if is_state(path) else load(path)
        gains = refit_(model, seen)
        if not gains.isfinite().all():
            raise UserError(f"{path} makes no pictures of your pairs: not all its weights are finite numbers")
        judged = judge(gains)
        words = f"{path.stem} {gains.mean():+.2f} dB ({judged:+.2f})"
        tried.append((judged, words, path, model))
    told = ", ".join(words for _, words, *_ in tried)
    *_, path, model = max(tried, key=lambda one: one[0])
    print(f"start     from {path}; fitted to your pairs; its gain on them (on whom it serves badly): {told}")
    model.requires_grad_(True)
    return model, config.model_copy(update={"start_from": path.stem}) if is_auto else config
