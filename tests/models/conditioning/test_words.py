from __future__ import annotations

import subprocess
import sys

import pytest

from star.models.conditioning.words import BEGIN, END, PAD, WordTokenizer, split_words


def tokenizer(**changes: object) -> WordTokenizer:
    return WordTokenizer(**{"num_buckets": 64, "num_hashes": 2, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A red circle, above!", ["a", "red", "circle", ",", "above", "!"]),
        ("a painter's (old) hat", ["a", "painter's", "(", "old", ")", "hat"]),
        ("caf\u00e9 \U0001f600", ["caf\u00e9", "\U0001f600"]),
        ("", []),
    ],
)
def test_words_and_punctuation_marks(caption: str, words: list[str]) -> None:
    assert split_words(caption) == words


def test_rows_lie_in_the_table_and_are_framed() -> None:
    words = tokenizer(words=["red"])
    rows, cut = words.encode("a Red ring", 32)
    assert rows[0] == (BEGIN, PAD)
    assert rows[-1] == (END, PAD)
    assert rows[2] == (3, PAD)
    assert not cut
    assert all(4 <= row < words.size for word in (rows[1], rows[3]) for row in word)


def test_cut_captions_keep_both_ends() -> None:
    rows, cut = tokenizer().encode("a b c d e", 4)
    assert cut
    assert rows == [*tokenizer().encode("a b", 4)[0]]


def test_a_word_is_the_same_row_in_every_process() -> None:
    code = "from star.models.conditioning.words import WordTokenizer as W; "
    code += "print(W(num_buckets=64, num_hashes=2).encode('a red circle', 32))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == str(tokenizer().encode("a red circle", 32))


@pytest.mark.parametrize("num_hashes", [1, 2])
def test_collisions_are_as_rare_as_stated(num_hashes: int) -> None:
    words = tokenizer(num_hashes=num_hashes)
    rows = [tuple(sorted(words.encode(f"word{i}", 8)[0][1])) for i in range(1000)]
    confused = sum(rows.count(row) - 1 for row in rows) / 2
    expected = 1000 * 999 / 2 * num_hashes / 64**num_hashes  # num_hashes! is num_hashes for 1 and 2
    assert 0.8 * expected < confused < 1.25 * expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"num_buckets": 0}, "num_buckets"), ({"num_hashes": 0}, "num_hashes"), ({"words": ["two words"]}, "two words")],
)
def test_refuses_impossible_settings(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tokenizer(**changes)


def test_identity_names_the_mapping() -> None:
    assert tokenizer().identity != tokenizer(words=["red"]).identity != tokenizer(words=["blue"]).identity


def test_one_string_is_no_list_of_words() -> None:
    with pytest.raises(ValueError, match="got 'red'"):
        WordTokenizer(num_buckets=4, num_hashes=1, words="red")
