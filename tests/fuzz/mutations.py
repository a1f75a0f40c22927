"""One damaged version of a file per number, always the same."""

from __future__ import annotations

import random
import re

NUMBERS = (
    b"0", b"-1", b"1", b"2147483648", b"-2147483649", b"4294967296", b"9223372036854775808", b"1e308", b"1e9", b"-1e400",
    b"NaN", b"Infinity", b"-Infinity", b"inf", b"nan", b"1.5", b"1000000000000000000000000000000", b"0x10", b"1_000", b"",
)  # fmt: skip
WORDS = (
    b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"[[[[]]]]", b"\xff", b"\x00", b"\r", b"\n", b'"', b",", b"../..", b"'",
    b"/etc/passwd", b"<", b"&x;", b"[" * 1100, b"{" * 1100, b"x" * 140_000, b"*a", b"!!python/object:os.system",
    b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80",
)  # fmt: skip
BYTES = (0x00, 0xFF, 0x7F, 0x80, 0x01)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_VALUE = re.compile(rb'"[^"\n]{0,60}"|-?\d+(?:\.\d+)?|\btrue\b|\bfalse\b|\bnull\b|[^,\s<>:{}\[\]"]+')


def _is_text(content: bytes) -> bool:
    sample = content[:2000]
    return sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in sample) > 0.95 * len(sample)


def _in_text(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    pattern, replacements = ((_NUMBER, NUMBERS), (_VALUE, WORDS + NUMBERS))[kind % 2]
    found = list(pattern.finditer(content))
    if not found:
        return content + rng.choice(WORDS)
    place = rng.choice(found)
    if kind == 3:  # a value of elsewhere in the file
        new = rng.choice(found).group()
    else:
        new = rng.choice(replacements)
    return content[: place.start()] + new + content[place.end() :]


def _in_bytes(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\x00"
    at = rng.randrange(len(content))
    length = min(len(content) - at, rng.choice((1, 2, 4, 8, 64, 1000)))
    kind = rng.randrange(8)
    if kind <= 1:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + bytes([rng.choice(BYTES)]) * length + content[at + length :]
    if kind == 3:
        return content[:at] + content[at + length :]
    if kind == 4:
        return content[: at + length] + content[at : at + length] + content[at + length :]
    if kind == 5:
        return content[:at]
    if kind == 6:
        return content[:at] + rng.randbytes(length) + content[at + length :]
    early = rng.randrange(min(len(content), 400))  # headers stand first
    return content[:early] + bytes([rng.choice(BYTES)]) + content[early + 1 :]


def mutated(content: bytes, kind: str, number: int) -> bytes:
    """`content` with one to three damages, drawn from the name of its kind and the number; never as it was."""
    rng = random.Random(f"{kind} {number}")
    text = _is_text(content)
    found = content
    while found == content:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            found = (_in_text if text and rng.random() < 0.7 else _in_bytes)(found, rng)
    return found
