from __future__ import annotations

import importlib.util
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageFont

RECIPE = Path(__file__).parents[2] / "data" / "emoji"

EMOJI_TEST = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                    ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                ; fully-qualified     # ☺️ E0.6 smiling face
263A                     ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
# subgroup: person-role
1F468 1F3FF 200D 1F33E   ; fully-qualified     # 👨🏿‍🌾 E4.0 man farmer: dark skin tone
1F469 200D 1F33E         ; fully-qualified     # 👩‍🌾 E4.0 woman farmer
# group: Symbols
# subgroup: keycap
0031 FE0F 20E3           ; fully-qualified     # 1️⃣ E0.6 keycap: 1
0032 FE0F 20E3           ; fully-qualified     # 2️⃣ E0.6 keycap: 2
1F550                    ; fully-qualified     # 🕐 E0.6 one o clock
1F567                    ; fully-qualified     # 🕧 E0.7 twelve-thirty
"""
ANNOTATIONS = """<?xml version="1.0" encoding="UTF-8"?><ldml><annotations>
<annotation cp="😀">face | grin | grinning face</annotation>
<annotation cp="😀" type="tts">grinning face</annotation>
<annotation cp="☺">face</annotation>
</annotations></ldml>"""


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`make_shards.py` as its own folder sees it."""
    monkeypatch.syspath_prepend(str(RECIPE))
    spec = importlib.util.spec_from_file_location("make_shards", RECIPE / "make_shards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_shards", module)
    spec.loader.exec_module(module)
    yield module
    for name in ("catalogue", "debian"):
        sys.modules.pop(name, None)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "unicode").mkdir()
    (tmp_path / "unicode" / "emoji-test.txt").write_text(EMOJI_TEST, encoding="utf-8")
    (tmp_path / "cldr" / "annotations").mkdir(parents=True)
    (tmp_path / "cldr" / "annotations" / "en.xml").write_text(ANNOTATIONS, encoding="utf-8")
    (tmp_path / "font.ttf").write_bytes(b"no font, the tests draw in its place")
    return {
        "font": f"{tmp_path}/font.ttf",
        "emoji": f"{tmp_path}/unicode",
        "keywords": f"{tmp_path}/cldr",
        "out": f"{tmp_path}/out",
    }


def test_emoji_are_listed_with_their_names_and_groups(recipe: ModuleType, inputs: dict[str, str]) -> None:
    found = recipe.read_emoji(Path(inputs["emoji"]) / "emoji-test.txt")
    assert [one.name for one in found[:3]] == ["grinning face", "smiling face", "man farmer: dark skin tone"]
    assert (found[2].group, found[2].subgroup, found[2].skin_tones) == ("People & Body", "person-role", 1)
    assert found[2].family == found[3].family
    assert found[4].family == found[5].family
    assert found[6].family == found[7].family
    assert len({one.family for one in found}) == 5


def test_captions_are_what_people_wrote_without_repetitions(recipe: ModuleType, inputs: dict[str, str]) -> None:
    found = recipe.read_emoji(Path(inputs["emoji"]) / "emoji-test.txt")
    keywords = recipe.read_keywords([Path(inputs["keywords"]) / "annotations" / "en.xml"])
    assert recipe.captions(found[0], keywords) == ["grinning face", "face, grin, grinning face"]
    assert recipe.captions(found[1], keywords) == ["smiling face", "white smiling face"]
    assert recipe.captions(found[3], keywords) == ["woman farmer"]


def test_the_hold_out_never_changes(recipe: ModuleType) -> None:
    assert [family for family in "abcdefghijklmnopqrstuvwxyz" if recipe.held_out(family, 10)] == ["c"]


def test_the_recipe_writes_shards_that_the_data_module_reads(
    recipe: ModuleType, inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(_: object, text: str) -> Image.Image:
        if text == "\U0001f567":
            raise recipe.UndrawableError("glyph: not in the font")
        return Image.new("RGBA", (136, 128), (ord(text[0]) % 256, 0, 0, 128))

    monkeypatch.setattr(recipe.Painter, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(recipe.Painter, "draw", draw)
    assert recipe.main([f"{name}={value}" for name, value in inputs.items()] + ["validation_percent=40"]) == 0
    out = Path(inputs["out"])
    summary = json.loads((out / "summary.json").read_text())
    assert sum(summary["pairs"].values()) == 7
    assert summary["skipped"] == {"glyph: not in the font": 1}
    assert summary["pictures_on_both_sides"] == 0
    assert (out / "contact_sheet.png").stat().st_size > 1000
    with tarfile.open(out / "train" / "00000.tar") as tar:
        assert [Path(name).suffix for name in tar.getnames()[:3]] == [".png", ".json", ".txt"]


def test_a_font_draws_and_what_it_lacks_is_told(recipe: ModuleType, tmp_path: Path) -> None:
    painter = recipe.Painter.__new__(recipe.Painter)
    painter.font, painter.joins, painter.trim = ImageFont.load_default(32), False, True
    painter.advance = painter.font.getlength("W")
    assert painter.draw("o").getchannel("A").getbbox() == (0, 0, *painter.draw("o").size)
    with pytest.raises(recipe.UndrawableError, match="libraqm"):
        painter.draw("ab")
    with pytest.raises(recipe.UndrawableError, match="not in the font"):
        painter.draw(" ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"font": "/nowhere.ttf"}, "font=/nowhere.ttf is no file"),
        ({"emoji": "/nowhere"}, "emoji=FOLDER"),
        ({"keywords": "/nowhere"}, "keywords=FOLDER"),
        ({"sise": "3"}, "sise"),
        ({"shard_size": "many"}, "Integer"),
        ({"shard_size": "-1"}, "shard_size is at least 1"),
        ({"validation_percent": "100"}, "validation_percent lies between 0 and 99"),
    ],
)
def test_what_is_missing_is_named(
    recipe: ModuleType, inputs: dict[str, str], changes: dict[str, str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert recipe.main([f"{name}={value}" for name, value in (inputs | changes).items()]) == 1
    assert message in caplog.text


def test_help_names_every_option(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, default in vars(recipe.Options()).items():
        assert re.search(rf"^  {name}={re.escape(str(default))}  \w", said, re.MULTILINE), name


def test_without_apt_the_alternative_is_named(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no command 'apt-get'.*font=PATH"):
        recipe.find_inputs(recipe.Options(cache=str(tmp_path / "cache")))


def test_a_folder_with_anything_else_is_not_replaced(
    recipe: ModuleType, inputs: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    kept = Path(inputs["out"]) / "shapes" / "00000.tar"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"another data set")
    assert recipe.main([f"{name}={value}" for name, value in inputs.items()]) == 1
    assert "would be replaced as a whole, but holds shapes" in caplog.text
    assert kept.read_bytes() == b"another data set"


def test_packages_are_unpacked_whatever_the_cache_is_relative_to(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`outputs/data/debian`, the default, is relative, and the commands run in a folder below it."""
    commands = {
        "apt-get": 'echo "$2" > "$2.deb"',
        "dpkg": '[ -f "$2" ] || { echo "no $2" >&2; exit 2; }; mkdir "$3" && cp "$2" "$3/found"',
    }
    (tmp_path / "bin").mkdir()
    for name, script in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    monkeypatch.chdir(tmp_path)
    folder = recipe.fetch_package("a-font", Path("outputs/debian"), "give it with font=PATH")
    assert (folder / "found").read_text() == "a-font\n"
