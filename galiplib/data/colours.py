"""What captions say of colours: "a small blue bird with black wings" -> body blue, wing black.

Where nobody has written down what a photograph shows, the captions that people gave it are all the truth there is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from .minibirds import COLOURS

PARTS = {  # part -> the words for it, of birds and of flowers, and what asks for a colour of it
    "body": ("birds?", "a {} bird"),
    "wing": ("wings?", "this bird has {} wings"),
    "belly": ("belly|breast|chest|abdomen", "this bird has a {} belly"),
    "petals": ("petals?|flowers?", "this flower has {} petals"),
}
NAMES = tuple(COLOURS)
_COLOUR = "|".join(NAMES)


@lru_cache
def _said(part: str) -> re.Pattern[str]:
    colours = rf"((?:{_COLOUR})(?:(?: and | or |, | )(?:{_COLOUR}))*)"  # "black and white"
    nouns = PARTS[part][0]
    return re.compile(rf"\b{colours} (?:{nouns})\b|\b(?:{nouns}) (?:that |which )?(?:is|are) (?:\w+ )?{colours}\b")


def said(caption: str, part: str) -> set[str]:
    """The colours that a caption gives a part; empty if it doesn't say."""
    found = _said(part).findall(caption.lower())
    return {colour for match in found for colour in re.findall(_COLOUR, " ".join(match))}


def colour_of(captions: Sequence[str], part: str) -> int:
    """A part's colour by a picture's captions, as a place in `NAMES`: the one that most of them give it; -1: unclear.

    Of several captions two at least must agree.
    """
    counts = Counter(colour for text in captions for colour in said(text, part)).most_common(2)
    if not counts or (len(captions) > 1 and counts[0][1] < 2) or (len(counts) > 1 and counts[0][1] == counts[1][1]):
        return -1
    return NAMES.index(counts[0][0])
