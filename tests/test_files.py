"""Files are wholly written or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trimtab.files import replace_atomically, write_text


def test_writes_into_a_new_folder_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one\n")
    write_text(path, "zwei ä\n")
    assert path.read_text(encoding="utf-8") == "zwei ä\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
@pytest.mark.parametrize("existing", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error, existing):
    path = tmp_path / "kept.bin"
    if existing:
        path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half of the n")
        raise error

    with pytest.raises(type(error)) as caught:
        replace_atomically(path, write)
    assert [item.name for item in tmp_path.iterdir()] == (["kept.bin"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert str(path) in str(caught.value)
        assert "No space left" in str(caught.value)
    else:
        assert any(str(path) in note for note in caught.value.__notes__)


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent

    replace_atomically(path, write)
    assert path.read_text() == "new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_clear_error(tmp_path):
    path = tmp_path / "file.txt"

    def write(temporary: Path) -> None:
        with Path("/dev/full").open("w") as device:
            device.write("x" * 100_000)

    with pytest.raises(OSError, match=r"could not write .*file.txt.*No space left"):
        replace_atomically(path, write)
    assert list(tmp_path.iterdir()) == []


def test_file_is_readable_by_others(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "x")
    assert path.stat().st_mode & 0o444 == 0o444
