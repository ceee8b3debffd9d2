"""What comes out of a zip: its texts; what is dangerous or damaged is refused by name."""

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from chatgot.data.preparation import zips
from chatgot.data.preparation.prepare import Preparation, Prepared, prepare
from chatgot.errors import ConfigError, StorageError

LINK = (stat.S_IFLNK | 0o777) << 16


@pytest.fixture
def read_zip(tmp_path, monkeypatch):
    """Return a function that prepares a zip of given members, and returns text and reasons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zips.tempfile, "tempdir", str(tmp_path))

    def read(members: dict[str, bytes], damage=bytes, **options) -> tuple[str, dict[str, str]]:
        Path("a.zip").write_bytes(damage(packed(members)))
        told = prepare(Preparation(("a.zip",), **options), Path("out.txt"))
        assert not list(tmp_path.glob("chatgot-*"))  # no unpacked member stays behind
        return Path("out.txt").read_text(), reasons_of(told)

    return read


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def reasons_of(told: Prepared) -> dict[str, str]:
    return {left.name.partition(": ")[2]: left.reason for left in told.refusals()}


GOOD = {"good.txt": b"good"}


def test_members_are_read_in_natural_order(read_zip):
    members = {"s/e10.txt": b"ten", "s/e2.txt": b"two", "__MACOSX/._e2.txt": b"x", "s/": b""}
    assert read_zip(members) == ("two\n<|endoftext|>\nten", {})


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        ("../evil.txt", b"x", "its name leads out of the archive"),
        ("a/../../evil.txt", b"x", "its name leads out of the archive"),
        ("..\\evil.txt", b"x", "its name leads out of the archive"),
        ("/etc/evil.txt", b"x", "its name is an absolute path"),
        ("C:\\evil.txt", b"x", "its name is an absolute path"),
        ("bomb.txt", bytes(3 << 20), "unpacks to more than 200 times its size"),
        ("inner.zip", packed(GOOD), "a zip within a zip"),
        ("inner.xlsx", packed({"[Content_Types].xml": b"x"}), "an Office document"),
        ("picture.jpg", b"\xff\xd8\xff\xe0", "a picture"),
        ("empty.txt", b"", "empty"),
    ],
)
def test_member_that_is_dangerous_or_no_text_is_refused(
    read_zip, tmp_path, member, content, reason
):
    text, reasons = read_zip(GOOD | {member: content})
    assert text == "good"
    ((name, words),) = reasons.items()
    assert words.startswith(reason)
    assert name.replace("\\", "/") == member.replace("\\", "/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out.txt"]


def test_member_that_is_longer_than_its_header_says_is_refused(read_zip):
    content = bytes(3 << 20)

    def lie(archive: bytes) -> bytes:
        length = len(content).to_bytes(4, "little")
        assert archive.count(length) == 2  # of the member itself, and in the list of members
        return archive.replace(length, (1000).to_bytes(4, "little"))

    text, reasons = read_zip(GOOD | {"bomb.txt": content}, damage=lie)
    assert text == "good"
    assert reasons["bomb.txt"].startswith("a damaged zip: Bad CRC-32")


def test_bomb_of_many_small_members_is_stopped(read_zip, monkeypatch):
    """Each may come out; together they are more than the archive may give."""
    monkeypatch.setattr(zips, "FREE_BYTES", 1 << 12)
    monkeypatch.setattr(zips, "MOST_RATIO", 2.2)
    members = {f"{n}.txt": os.urandom(500).hex().encode() for n in range(40)}
    assert read_zip(members)[1] == {}  # hex digits shrink to half
    Path("a.zip").write_bytes(all_the_first(packed(members)))
    told = prepare(Preparation(("a.zip",)), Path("out.txt"))
    assert len(told.read) + len(told.left_out) == 40
    assert 10 < len(told.left_out) < 40
    assert all(left.reason.startswith("unpacks to") for left in told.left_out)


def all_the_first(archive: bytes) -> bytes:
    """Let all members of an archive be its first one: overlapping, as in the worst bombs."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        first = opened.infolist()[0]
        content = opened.read(first)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as smaller:
        smaller.writestr(first.filename, content)
        info = smaller.infolist()[0]
        smaller.filelist.extend([info] * 39)
    return file.getvalue()


def test_symlink_and_encrypted_member_are_refused(read_zip):
    def mark(archive: bytes) -> bytes:
        file = io.BytesIO(archive)
        with zipfile.ZipFile(file, "a") as opened:
            for info in opened.infolist():
                if info.filename == "link":
                    info.external_attr = LINK
                if info.filename == "secret.txt":
                    info.flag_bits |= 1
            opened.comment = b"written again"
        return file.getvalue()

    _, reasons = read_zip(GOOD | {"link": b"/etc/passwd", "secret.txt": b"x"}, damage=mark)
    assert reasons == {
        "link": "a symlink within a zip",
        "secret.txt": "encrypted; unpack it with its password",
    }


def test_damaged_member_is_refused_and_the_others_are_read(read_zip):
    def damage(archive: bytes) -> bytes:
        return archive.replace(b"stored text", b"stored Text")

    Path("a.zip").write_bytes(damage(packed(GOOD | {"b.txt": b"stored text"}, zipfile.ZIP_STORED)))
    told = prepare(Preparation(("a.zip",)), Path("out.txt"))
    assert Path("out.txt").read_text() == "good"
    assert reasons_of(told)["b.txt"].startswith("a damaged zip: Bad CRC-32")


@pytest.mark.parametrize("kept", [30, 200])
def test_archive_that_is_cut_off_is_refused_by_name(read_zip, kept):
    with pytest.raises(ConfigError, match=r"a\.zip: a damaged zip"):
        read_zip({f"{n}.txt": b"x" * n for n in range(1, 20)}, damage=lambda whole: whole[:kept])


def test_archive_with_an_endless_list_of_members_is_not_opened(read_zip, monkeypatch):
    monkeypatch.setattr(zips, "MOST_MEMBERS_BYTES", 100)
    with pytest.raises(ConfigError, match="more members than any collection"):
        read_zip({f"{n}.txt": b"x" for n in range(5)})


def test_temporary_folder_without_room_is_said(read_zip, monkeypatch):
    def refuse(descriptor, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zips.os, "write", refuse)
    with pytest.raises(StorageError, match="No space left on device; make room, or set TMPDIR"):
        read_zip(GOOD)


def test_names_in_utf8_are_shown_as_they_are(read_zip):
    """Many programs write them without the flag that says so."""

    def rename(archive: bytes) -> bytes:
        return archive.replace(b"Gr____e", "Größe".encode())

    _, reasons = read_zip(GOOD | {"Gr____e.txt": b""}, damage=rename)
    assert list(reasons) == ["Größe.txt"]
