"""Whatever is wrong with a file is one ValueError that names it."""

from __future__ import annotations

import csv
import struct
import zlib

import pytest
import yaml
from PIL import Image
from safetensors import SafetensorError

from trimtab.inputs import (
    bad_input,
    check_expansion,
    csv_fields,
    lines_of,
    named,
    read_json,
    read_json_lines,
    read_json_mapping,
    shortened,
    utf8,
)


@pytest.mark.parametrize(
    "error",
    [
        csv.Error("x"), struct.error("x"), zlib.error("x"), RecursionError("x"), MemoryError(), OverflowError("x"),
        KeyError("x"), AttributeError("x"), yaml.YAMLError("x"), Image.DecompressionBombError("x"), SafetensorError("x"),
        OSError("x"), EOFError("x"), SyntaxError("x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_kind_of_damage_becomes_one_error_that_names_the_file(error):
    with (
        pytest.raises(ValueError, match=r"^/some/file is damaged or not of the expected format: ."),
        named("/some/file"),
    ):
        raise error


def test_what_names_the_file_already_passes_and_slips_of_ours_elsewhere_do_not():
    with pytest.raises(ValueError, match=r"^/a/b: line 3$"), named("/a/b"):
        raise ValueError("/a/b: line 3")
    with pytest.raises(FileNotFoundError, match="/a/b does not exist"), named("/a/b"):
        raise FileNotFoundError(2, "no")
    with pytest.raises(KeyboardInterrupt), named("/a/b"):
        raise KeyboardInterrupt
    assert not issubclass(AttributeError, bad_input())
    assert issubclass(yaml.YAMLError, bad_input())


def test_a_long_message_is_cut():
    with pytest.raises(ValueError, match="more characters") as caught, named("f"):
        raise ValueError("y" * 1_000_000)
    assert len(str(caught.value)) < 2200
    assert shortened("abc", 3) == "abc"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "expected format: Expecting"), (b"\xff", "line 1 is not UTF-8"), (b"1\n\n\xff", "line 3 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"), (b"1" * 10_000, "expected format: Exceeds"), (b"", "Expecting value"),
    ],
)  # fmt: skip
def test_json_that_is_none(tmp_path, content, match):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    assert type(caught.value) is ValueError


def test_json_of_another_shape_names_file_and_line(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": "\xe2\x80\xa8"}\n')  # a byte order mark; U+2028 ends no line
    assert read_json_lines(file) == [{"a": 1}, {"b": "\u2028"}]
    assert utf8(file).startswith("{")
    assert list(lines_of(file)) == [(1, '{"a": 1}\r\n'), (3, '{"b": "\u2028"}\n')]
    file.write_bytes(b'{"a": 1}\n{"b"')
    assert list(lines_of(file, whole=True)) == [(1, '{"a": 1}\n')]  # the last was cut off
    file.write_bytes(b"1\n\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.json: line 3 is not UTF-8 \(byte 0xff\)"):
        list(lines_of(file))
    file.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(ValueError, match=r"a\.json, line 2 must hold a mapping, got list"):
        read_json_lines(file)
    file.write_text('{"a": 1}\n{\n')
    with pytest.raises(ValueError, match=r"a\.json, line 2 is damaged"):
        read_json_lines(file)
    file.write_text("3")
    with pytest.raises(ValueError, match=r"a\.json must hold a mapping, got int"):
        read_json_mapping(file)
    with pytest.raises(FileNotFoundError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")


def test_a_line_of_comma_separated_values():
    assert csv_fields(' a , "b ""c"", d"\r\n') == ["a", 'b "c", d']
    assert csv_fields("\n") == []
    with pytest.raises(ValueError, match="carriage return"):
        csv_fields("a,b\rc,d\n")
    with pytest.raises(ValueError, match="131072"):
        csv_fields("a," + "x" * 140_000)


def test_documents_that_stand_for_huge_ones_are_refused_without_writing_them_out():
    check_expansion({"a": [1, 2, {"b": (3,)}], **{str(number): 0 for number in range(40_000)}})
    for _ in range(2):
        part = ["x"]
        for _ in range(200):
            part = [part, part]
        with pytest.raises(ValueError, match="more than 100,000 parts"):
            check_expansion({"k": part})
    part = []
    part.append(part)
    with pytest.raises(ValueError, match="holds itself"):
        check_expansion(part)


def test_a_missing_file_inside_is_named_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"inner\.txt"), named(tmp_path):
        (tmp_path / "inner.txt").read_text()
