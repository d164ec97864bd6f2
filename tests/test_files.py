"""Files as they come in are bounded and plain; files as they go out are whole, private and explained."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from latentprint import files
from latentprint.contracts import InputError, quoted
from latentprint.files import FileError, parse_json, parse_toml, read, read_json, read_toml, write


@pytest.fixture(params=["json", "toml"])
def reader(request):
    """(file name, reader, text of the table {"a": VALUE})."""
    if request.param == "json":
        return "x.json", read_json, lambda value: f'{{"a": {value}}}'
    return "x.toml", read_toml, lambda value: f"a = {value}"


def test_what_was_written_comes_back(tmp_path):
    value = {"q": [0.1 + 0.2, 5e-324, 2**60, True, None], "name": "é\u2028"}
    write(tmp_path / "x.json", files.to_json(value, "x"))
    assert read_json(tmp_path / "x.json") == value
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")  # as Windows' editors begin a file
    assert read_toml(tmp_path / "bom.toml") == {"a": 1}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1e400", "only finite ones"),
        ("1" * 41, "more than 40 digits"),
        ("1" * 5000, "."),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ("[" * 30_000 + "]" * 30_000, "more than 64 levels"),
        ("[", "."),
    ],
)
def test_values_that_no_computation_survives(tmp_path, reader, value, words):
    name, read_it, text = reader
    (tmp_path / name).write_text(text(value))
    with pytest.raises(FileError, match=words) as caught:
        read_it(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_where_numbers_are_wanted(value):
    with pytest.raises(FileError, match="only finite ones"):
        parse_json(f'{{"a": [{value}]}}', "it")
    assert isinstance(parse_json(f'{{"a": [{value}]}}', "it", infinite=True)["a"][0], float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "a key occurs twice"),
        ('{"a": "\\ud800"}', "not Unicode"),
        ('{"\\udc00": 1}', "not Unicode"),
        ("[1]", "must hold a JSON object, got list"),
        ('"text"', "must hold a JSON object, got str"),
        ("null", "must hold a JSON object, got NoneType"),
        ("", "no JSON"),
    ],
)
def test_json_that_is_read_differently_by_others_or_not_at_all(text, words):
    with pytest.raises(FileError, match=words):
        parse_json(text, "it")


def test_dotted_keys_nest_as_brackets_do():
    with pytest.raises(FileError, match="levels deep"):
        parse_toml(".".join("a" * 1000) + " = 1", "it")
    with pytest.raises(FileError, match="not valid TOML"):
        parse_toml("a = ", "it")


def test_only_a_plain_file_is_read_and_nothing_is_waited_for(tmp_path, reader):
    name, read_it, _ = reader
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for given, words in [
        (tmp_path / "pipe", "not a plain file"),
        (Path("/dev/zero"), "not a plain file"),
        (tmp_path, "a folder|not a plain file"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / ("long" * 200), "too long"),
        (tmp_path / "a\0b", "zero byte"),
        (tmp_path / "bytes", "not UTF-8"),
        (Path(os.fsdecode(b"\xff" * 9)), "does not exist"),
        (tmp_path / "two\nlines", "does not exist"),
    ]:
        with pytest.raises(FileError, match=words) as caught:
            read_it(given)
        said = str(caught.value)
        assert "\n" not in said and len(said) < 400 and said.encode()
    (tmp_path / name).symlink_to(tmp_path / "empty")
    (tmp_path / "empty").write_text("{}" if name.endswith("json") else "")
    assert read_it(tmp_path / name) == {}


def test_a_large_file_is_refused_by_its_size(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match=r"more than 1,000 bytes"):
        read(tmp_path / "sparse", 1000)
    (tmp_path / "fits").write_bytes(b"x" * 1000)
    assert read(tmp_path / "fits", 1000) == b"x" * 1000
    with pytest.raises(FileError, match="more than 999 bytes"):
        read(tmp_path / "fits", 999)


def test_names_in_sentences_are_short_and_of_one_line():
    assert quoted("x") == "'x'" and quoted(Path("a/b")) == "'a/b'" and quoted(3) == "3"
    assert len(quoted("ab\n" * 1000)) <= 122 + 2 * 80 and "\n" not in quoted("ab\n" * 1000)
    assert quoted("a" * 300 + "/end.json").endswith("/end.json'")
    assert quoted(10**5000) == "a number of very many digits"


# Writing


@pytest.fixture
def loose():
    """A umask that lets everybody read: what is private must be so by itself."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("loose")
def test_files_and_folders_are_private_from_the_moment_they_exist(tmp_path, monkeypatch):
    seen, real = [], os.fsync

    def fsync(handle):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "run" / "probes" / "part", b"rows")
    write(tmp_path / "run" / "report.html", b"page", public=True)
    assert seen == [0o600, 0o700] * 2
    assert mode(tmp_path / "run") == mode(tmp_path / "run" / "probes") == 0o700
    assert mode(tmp_path / "run" / "probes" / "part") == 0o600
    assert mode(tmp_path / "run" / "report.html") == 0o644


@pytest.mark.usefixtures("loose")
def test_what_a_kill_left_aside_is_not_written_into(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".x.tmp").symlink_to(tmp_path / "victim")
    write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and mode(tmp_path / "x") == 0o600
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full.*make room and repeat"),
        (errno.EDQUOT, "the disk is full.*quota.*make room and repeat"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_system_refuses_is_a_sentence_and_the_old_file_stays(tmp_path, monkeypatch, code, words):
    write(tmp_path / "x", b"old")

    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=words) as caught:
        write(tmp_path / "x", b"new")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_a_disk_that_is_really_full(tmp_path):
    """On a file system of 64 KiB, where root may mount one in a namespace of its own."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom latentprint.files import FileError, write\n"
        "write(Path(sys.argv[1]) / 'x', b'old')\n"
        "try:\n    write(Path(sys.argv[1]) / 'x', b'x' * 2**20)\n"
        "except FileError as error:\n    print(error)\n"
        "print((Path(sys.argv[1]) / 'x').read_bytes(), len(list(Path(sys.argv[1]).iterdir())))\n"
    )
    mounted = 'mount -t tmpfs -o size=64k none "$1" || exit 77; exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode in (1, 77) and "latentprint" not in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()[:80]}")
    assert done.returncode == 0, done.stderr
    said, rest = done.stdout.strip().splitlines()
    assert "the disk is full" in said and rest == "b'old' 1"


def test_a_folder_in_the_way_of_a_file_and_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match=r"not a folder|Not a dir"):
        write(tmp_path / "file" / "below" / "x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="could not be written"):
        write(tmp_path / "folder", b"")
    with pytest.raises(FileError, match="too long"):
        write(tmp_path / ("long" * 100), b"")


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path(os.devnull), tmp_path / "pipe", Path()):
        with pytest.raises(FileError, match="could not be written"):
            write(path, b"x")
    assert Path(os.devnull).is_char_device() and (tmp_path / "pipe").is_fifo()


def test_text_that_is_not_unicode_is_not_written():
    with pytest.raises(FileError, match="not Unicode"):
        files.to_json({"a": "\ud800"}, "x")
    assert json.loads(files.to_json({"a": "é"}, "x")) == {"a": "é"}
