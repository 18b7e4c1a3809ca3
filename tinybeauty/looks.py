"""The looks that ship, by name."""

from __future__ import annotations

from pathlib import Path

from tinybeauty.errors import UserError, find_similar
from tinybeauty.files import tidy_path

LOOKS = Path(__file__).resolve().parents[1] / "tinybeauty_model" / "pretrained"


def find_look(look: str, *others: str) -> Path:
    """Return the file of a look: one that ships, by name, or the path of a .pt.

    Args:
        look: what a person typed.
        others: what else may be typed, for the message.

    Raises:
        UserError: there is none of that name.
    """
    try:
        path = Path(tidy_path(look))
    except ValueError as error:
        raise UserError(f"the look {error}") from None
    if look.endswith((".pt", ".ckpt")) or path.is_file():
        return path  # whether it is there, and a network, is said where it is loaded
    known = sorted(path.stem for path in LOOKS.glob("*.pt"))
    if look not in known:
        similar = find_similar(look, [*known, *others])
        hint = f", did you mean {similar}? There are" if similar else "; there are"
        raise UserError(
            f"there is no look {look!r}{hint} {', '.join([*known, *others])}, or give the path of a .pt"
        )
    return LOOKS / f"{look}.pt"
