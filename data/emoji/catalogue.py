"""Which emoji there are, what people call them, and which of them belong together."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

_LINE = re.compile(r"^([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (.+)$")
_HEADING = re.compile(r"^# (group|subgroup): (.+)$")
VARIATION_SELECTOR = "\ufe0f"
_JOINER, _KEYCAP = "\u200d", "\u20e3"
_SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_GENDERS = re.compile(f"{_JOINER}[\u2640\u2642]")
_CLOCKS = re.compile("[\U0001f550-\U0001f567]")
_ADULTS, _CHILDREN = re.compile("[\U0001f468\U0001f469\U0001f9d1]"), re.compile("[\U0001f466\U0001f467\U0001f9d2]")


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        text: its characters.
        name: its short name, `cat with tears of joy`.
        group: `Animals & Nature`.
        subgroup: `animal-mammal`.

    """

    text: str
    name: str
    group: str
    subgroup: str

    @property
    def skin_tones(self) -> int:
        """How many skin tones it names: 0 in the yellow original."""
        return len(_SKIN_TONES.findall(self.text))

    @property
    def family(self) -> str:
        """What near-duplicates share: skin tones, genders, keycaps and clock faces are one family each."""
        text = _SKIN_TONES.sub("", self.text.replace(VARIATION_SELECTOR, ""))
        if text.endswith(_KEYCAP):
            return "keycap"
        text = _CHILDREN.sub("child", _ADULTS.sub("adult", _GENDERS.sub("", text)))
        return _CLOCKS.sub("clock", text)


def read_emoji(path: Path) -> list[Emoji]:
    """All fully qualified emoji of Unicode's `emoji-test.txt`.

    Raises:
        ValueError: when the file holds none.

    """
    heading = {"group": "", "subgroup": ""}
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _HEADING.match(line):
            heading[match[1]] = match[2]
        elif match := _LINE.match(line):
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            found.append(Emoji(text, match[2], heading["group"], heading["subgroup"]))
    if not found:
        raise ValueError(f"{path} has no fully-qualified emoji; is it Unicode's emoji-test.txt?")
    return found


def read_keywords(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Emoji (without variation selectors) -> keywords, from CLDR's annotation files."""
    keywords: dict[str, list[str]] = {}
    for path in paths:
        for entry in ElementTree.parse(path).iter("annotation"):
            if entry.get("type") != "tts" and entry.text:
                keywords[entry.get("cp", "")] = [word.strip() for word in entry.text.split("|")]
    return keywords


def captions(emoji: Emoji, keywords: Mapping[str, Sequence[str]]) -> list[str]:
    """What people wrote about an emoji, best first, without repetitions.

    Its short name, the older name of its character in the Unicode standard, and CLDR's keywords.
    """
    found = [emoji.name]
    characters = emoji.text.replace(VARIATION_SELECTOR, "")
    if len(characters) == 1 and (name := unicodedata.name(characters, "").lower()):
        found.append(name)
    # A lone keyword, such as the "flag" of every flag, says less than the name.
    if len(words := keywords.get(characters, ())) > 1:
        found.append(", ".join(words))
    return list(dict.fromkeys(found))


def held_out(family: str, percent: int) -> bool:
    """Whether a family is for validation: decided by a hash of it, for ever the same."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:4], "big") % 100 < percent
