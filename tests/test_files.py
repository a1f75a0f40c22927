"""Files are wholly written or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.files import alone, errno_of, folder_atomically, replace_atomically, write_text


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


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_follows_from_the_umask(tmp_path, mask, mode):
    path = tmp_path / "file.txt"
    before = os.umask(mask)
    try:
        write_text(path, "x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_the_systems_number_is_found_where_a_library_wrapped_it():
    assert errno_of(OSError(errno.ENOSPC, "full")) == errno.ENOSPC
    assert errno_of(OSError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert errno_of(RuntimeError("Error: [Errno 28] error writing bytes to file")) == errno.ENOSPC
    assert errno_of(ValueError("28")) is None


def test_a_folder_that_another_process_holds_is_refused_by_name(tmp_path):
    holder = (
        "import sys, pathlib; from trimtab.files import alone\n"
        "with alone(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "new"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=r"another process is writing into .*new; wait"),
            alone(folder, "writing into"),
        ):
            pass
        process.kill()
    with alone(folder, "writing into"):  # the system freed the lock
        pass


def test_a_folder_appears_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "new"
    with folder_atomically(place) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("a")
        assert not place.exists()
    assert (place / "inner" / "a.txt").read_text() == "a"
    with pytest.raises(ValueError, match="exists and is not empty"), folder_atomically(place):
        raise AssertionError("not reached")
    (tmp_path / "empty").mkdir()
    with folder_atomically(tmp_path / "empty") as temporary:
        (temporary / "b.txt").write_text("b")
    assert (tmp_path / "empty" / "b.txt").read_text() == "b"
    with pytest.raises(KeyboardInterrupt), folder_atomically(tmp_path / "half"):
        raise KeyboardInterrupt
    message = f"could not write {tmp_path / 'full'}: no space"
    with pytest.raises(OSError, match=message), folder_atomically(tmp_path / "full"):
        raise OSError(28, "no space")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty", "new"]
