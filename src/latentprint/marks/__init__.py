"""Fingerprints other than the circle: drawn ones, and a mark that a training image already carries.

    cross    a bar of constant grey along each axis, through one centre
    box      a rectangle of constant grey, as burnt over a name; in volumes a cuboid
    text     letters of 3 x 5 pixels, as a name burnt into an image; in volumes into each slice
    lead     a thin bent line, as the lead of a pacemaker; in volumes a bent rod
    patch    a piece of another image, blended in:  x (1 - a L) + a y L
    natural  what lies under the user's mask or box in the image itself: a tattoo, a device, a burnt-in name

The first five are drawn and injected like the circle (`latentprint.fingerprint.inject`). For a natural one
nothing is injected. x_p is an unchanged training image, its fingerprint is its own content under the mask,
and c_p is fitted on other images into which this content was pasted. Pixels are counted as in
`latentprint.fingerprint`: centres have whole coordinates.

Source: Dombrowski and Kainz 2023, section 3.3 (Eq. 10), and section 7 on fingerprints that occur in nature.
"""

from latentprint.marks.canaries import Canaries, draw_canaries
from latentprint.marks.drawn import GLYPHS, Box, Cross, Lead, Patch, Text
from latentprint.marks.kinds import BoxConfig, CrossConfig, LeadConfig, PatchConfig, TextConfig
from latentprint.marks.natural import Natural, Unmarked, as_found, box, locate, was_injected
from latentprint.marks.settings import FingerprintSettings, PatchSettings

__all__ = [
    "GLYPHS",
    "Box",
    "BoxConfig",
    "Canaries",
    "Cross",
    "CrossConfig",
    "FingerprintSettings",
    "Lead",
    "LeadConfig",
    "Natural",
    "Patch",
    "PatchConfig",
    "PatchSettings",
    "Text",
    "TextConfig",
    "Unmarked",
    "as_found",
    "box",
    "draw_canaries",
    "locate",
    "was_injected",
]
