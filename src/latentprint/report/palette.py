"""Colours of every page, light and dark, in one place. A test checks their contrast against WCAG 2.2 AA."""

from __future__ import annotations

PALETTE: dict[str, dict[str, str]] = {
    "light": {
        "paper": "#fbfaf7",
        "panel": "#f3f1ea",
        "ink": "#1d1c1a",
        "muted": "#5a574f",
        "rule": "#d8d4c8",
        "axis": "#7d796e",
        "link": "#1f4e79",
        "model": "#1f4e79",
        "baseline": "#6b675d",
        "control": "#94580a",
        "leak": "#9a1f1c",
        "leak-tint": "#fbeeec",
        "clean": "#1c6140",
        "clean-tint": "#eaf4ed",
        "unsure": "#7a4f00",
        "unsure-tint": "#fbf3df",
    },
    "dark": {
        "paper": "#161719",
        "panel": "#1f2124",
        "ink": "#eceae4",
        "muted": "#b0aca2",
        "rule": "#3b3d41",
        "axis": "#85827a",
        "link": "#93bdec",
        "model": "#93bdec",
        "baseline": "#a8a59c",
        "control": "#e2b25b",
        "leak": "#ff9f96",
        "leak-tint": "#2d1b1a",
        "clean": "#88d3a6",
        "clean-tint": "#15261c",
        "unsure": "#eec172",
        "unsure-tint": "#2a2314",
    },
}

TEXT_PAIRS: tuple[tuple[str, str], ...] = tuple(
    [
        (front, back)
        for front in ("ink", "muted", "link", "control", "baseline")
        for back in ("paper", "panel")
    ]
    + [(state, back) for state in ("leak", "clean", "unsure") for back in ("paper", "panel", f"{state}-tint")]
    + [(front, f"{state}-tint") for front in ("ink", "muted") for state in ("leak", "clean", "unsure")]
)
"""(front, back) pairs that carry text: 4.5 to 1 or more (WCAG 1.4.3)."""

GRAPHIC_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (front, back) for front in ("model", "baseline", "control", "axis") for back in ("paper", "panel")
)
"""Pairs that carry lines and points: 3 to 1 or more (WCAG 1.4.11)."""


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio of two ``#rrggbb`` colours: ``(L1 + 0.05) / (L2 + 0.05)``, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def variables() -> str:
    """The colours as CSS custom properties: dark if the reader's system asks for it, light on paper."""
    light = "".join(f"--{name}:{value};" for name, value in PALETTE["light"].items())
    dark = "".join(f"--{name}:{value};" for name, value in PALETTE["dark"].items())
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )
