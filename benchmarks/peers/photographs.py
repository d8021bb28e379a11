"""Real photographs: where they are found on this machine, and random crops of them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BACKGROUNDS = Path("/usr/share/backgrounds/mate/nature")
WALLPAPERS = Path("/usr/share/wallpapers")
# Of the wallpapers, those that are photographs.
TAKEN = (
    "BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am"  # 2560 x 1600
).split()
PACKAGES = "mate-backgrounds plasma-workspace-wallpapers"


def paths() -> list[Path]:
    """Those of two Debian packages; without these the two that scikit-learn brings, of 640 x 427 pixels."""
    found = sorted(BACKGROUNDS.glob("*.jpg"))
    found += [path for name in TAKEN for path in sorted((WALLPAPERS / name).glob("contents/images/2560x1600.jpg"))]
    if found:
        return found
    spec = importlib.util.find_spec("sklearn")
    return sorted(Path(spec.origin).parent.glob("datasets/images/*.jpg")) if spec and spec.origin else []


def missing() -> str | None:
    """What to install for more photographs, if something is."""
    if BACKGROUNDS.is_dir() and WALLPAPERS.is_dir():
        return None
    return f"only {len(paths())} small photographs are here; 'apt-get install {PACKAGES}' brings 22 large ones"


class Crops:
    """Random crops out of all photographs, each photograph in proportion to its area."""

    def __init__(self, seed: int) -> None:
        self.photographs: list[Any] = [np.asarray(Image.open(path).convert("RGB")) for path in paths()]
        if not self.photographs:
            raise SystemExit(f"no photographs are here: install scikit-learn, or {PACKAGES} by apt-get")
        areas = np.array([photograph[..., 0].size for photograph in self.photographs], dtype=float)
        self.shares = areas / areas.sum()
        self.rng = np.random.default_rng(seed)

    def crop(self, side: int) -> Any:
        """uint8 ``[side, side, 3]``; a photograph that is smaller is laid out in mirrored tiles."""
        photograph = self.photographs[self.rng.choice(len(self.photographs), p=self.shares)]
        height, width = photograph.shape[:2]
        if min(height, width) < side:
            more = ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0))
            photograph = np.pad(photograph, more, mode="symmetric")
            height, width = photograph.shape[:2]
        top, left = self.rng.integers(height - side + 1), self.rng.integers(width - side + 1)
        return photograph[top : top + side, left : left + side]
