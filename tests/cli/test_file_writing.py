"""Files are written whole or not at all, and what went wrong is one line."""

from __future__ import annotations

import os

import pytest

from ffmef import files
from ffmef.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    files.write(target, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"a\.bin: cannot be written: No space left on device$"):
        files.write(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_links_and_permissions_stay(tmp_path):
    target, link = tmp_path / "a", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    files.write(link, "new ü", durable=True)
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "new ü"
    assert target.stat().st_mode & 0o777 == 0o600


def test_an_interrupted_write_can_be_forgotten(tmp_path, monkeypatch):
    def end(*_):
        assert len(list(tmp_path.iterdir())) == 1
        files.forget_unfinished()
        assert not list(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "a", b"data")


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    for name in (".ffmef-12-ab.tmp", "a.tmp", ".ffmef"):
        (tmp_path / name).write_text("")
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ffmef", "a.tmp"]


def test_reasons(tmp_path):
    with pytest.raises(InputError, match=r"missing: cannot be read: No such file or directory$"):
        files.read_text(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="binary: cannot be read: 'utf-8' codec"):
        files.read_text(tmp_path / "binary")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfx")
    assert files.read_text(tmp_path / "marked") == "x"
    with pytest.raises(InputError, match="cannot be written: "):
        files.write(f"{tmp_path}/a\0b", b"")
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        files.write(tmp_path / "no" / "folder", b"")
