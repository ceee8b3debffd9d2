"""scripts/fix_log_encoding.py as a process: arguments, exit codes, pipes and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fix_log_encoding.py"
LONG_NAME = "x" * 246 + ".log"  # with _fixed it is longer than a file system allows
BROKEN = "\x1b[31mnaÃ¯ve\x1b[0m\r\n".encode()
MENDED = "naïve\r\n".encode()


def run(folder, *arguments, stdin=b""):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, input=stdin, capture_output=True, timeout=60, check=False
    )


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path):
    for name in ("a.log", "b.log.1", "sub/c.txt", "sub/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(BROKEN)
    (tmp_path / "clean.log").write_bytes(MENDED)
    return tmp_path


def test_files_patterns_and_folders_are_each_mended_once(folder):
    done = run(folder, "a.log", "*.log")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        (folder / "a_fixed.log").read_bytes() == (folder / "clean_fixed.log").read_bytes() == MENDED
    )
    for _ in range(2):
        done = run(folder, ".", "--recursive")
        assert done.returncode == 0
        fixed = ["a_fixed.log", "b.log_fixed.1", "clean_fixed.log", "sub/c_fixed.txt"]
        assert [name for name in names(folder) if "_fixed" in name] == fixed
    assert b"a_fixed.log: is the mended copy of a log beside it; left alone" in done.stdout


def test_check_says_what_would_change_and_writes_nothing(folder):
    before = names(folder)
    assert run(folder, "clean.log", "--check").returncode == 0
    done = run(folder, "clean.log", "a.log", "--check", "--report", "json")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [report["changed"] for report in reports]) == (1, [False, True])
    assert reports[1]["counts"] == {"escape_sequences": 2, "mojibake_lines": 1}
    assert names(folder) == before


def test_options_in_place_keep_ansi_newline_and_output_work(folder):
    assert run(folder, "a.log", "--in-place").returncode == 0
    assert ((folder / "a.log").read_bytes(), (folder / "a.log.bak").read_bytes()) == (
        MENDED,
        BROKEN,
    )
    assert run(folder, "b.log.1", "--output", "x", "--keep-ansi", "--newline", "lf").returncode == 0
    assert (folder / "x").read_bytes() == "\x1b[31mnaïve\x1b[0m\n".encode()


def test_a_pipe_goes_from_stdin_to_stdout_and_its_report_to_stderr(folder):
    done = run(folder, "-", stdin=BROKEN)
    assert (done.returncode, done.stdout) == (0, MENDED)
    assert b"2 escape sequences" in done.stderr
    done = run(folder, "-", "--check", stdin=BROKEN)
    assert (done.returncode, done.stdout) == (1, b"")
    reader = f'"{sys.executable}" "{SCRIPT}" - < big | head -c 5; exit "${{PIPESTATUS[0]}}"'
    (folder / "big").write_bytes(BROKEN * 100_000)
    done = subprocess.run(
        ["bash", "-c", reader], cwd=folder, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, MENDED[:5])
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["gone.log"], 2, "gone.log: cannot be read: No such file or directory"),
        (["sub"], 2, "sub: is a folder"),
        (["*.nothing"], 2, "*.nothing: no file matches"),
        (["binary.log"], 2, "binary.log: looks like a binary file"),
        (["a.log", "--output", "a.log"], 2, "output and input are the same file"),
        (["a.log", "b.log.1", "--output", "x"], 2, "takes one log, 2 were named"),
        (
            ["a.log", "--output", "gone/x.log"],
            5,
            "x.log: cannot be written: No such file or directory",
        ),
        (["gone.log", "--check"], 2, "gone.log: cannot be read"),
        ([".", "clean.log", "--check"], 2, ".: is a folder"),
        (["/", "--check"], 2, "/: is a folder"),
        ([""], 2, ".: is a folder"),
        (["x" * 300], 2, "cannot be read: File name too long"),
        (["loop.log"], 2, "loop.log: cannot be read: Too many levels"),
        (["a.log", "--output", "loop.log"], 5, "loop.log: cannot be written: Too many levels"),
        (["a.log", "--output", "x" * 300], 5, "cannot be written: File name too long"),
        (["a.log", "--output", "pipe"], 2, "pipe: is a pipe or a device"),
        ([LONG_NAME], 5, "cannot be written: File name too long"),
    ],
)
def test_bad_input_gets_one_line_an_exit_code_and_changes_nothing(
    folder, arguments, exit_code, message
):
    (folder / "binary.log").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    (folder / "loop.log").symlink_to("loop.log")
    os.mkfifo(folder / "pipe")
    (folder / LONG_NAME).write_bytes(BROKEN)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    done = run(folder, *arguments)
    assert done.returncode == exit_code
    assert done.stderr.decode().count("\n") == 1
    assert message in done.stderr.decode()
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such", "no encoding of text files is called 'no-such'"),
        ("base64", "no encoding of text files is called 'base64'"),
        ("cp037", "cp037 has other bytes for ASCII"),
    ],
)
def test_an_encoding_that_no_log_is_written_in_is_refused(folder, name, message):
    done = run(folder, "a.log", "--encoding", name)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_stdin_is_refused_next_to_other_files_and_with_in_place(folder):
    for arguments in (["-", "--in-place"], ["-", "a.log"]):
        done = run(folder, *arguments)
        assert done.returncode == 2
        assert b"stands alone" in done.stderr


def test_an_unreadable_folder_does_not_stop_the_other_files(folder):
    (folder / "sub").chmod(0)
    try:
        if os.access(folder / "sub", os.R_OK):
            pytest.skip("root may enter any folder")
        for arguments, exit_code in [
            (["sub/c.txt", "a.log"], 2),
            ([".", "--recursive"], 2),
            (["a.log", "--output", "sub/x.log"], 5),
        ]:
            done = run(folder, *arguments)
            assert (done.returncode, done.stderr.decode().count("\n")) == (exit_code, 1)
        assert (folder / "a_fixed.log").read_bytes() == MENDED
    finally:
        (folder / "sub").chmod(0o700)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists on Linux only")
def test_an_unwritable_stdout_does_not_stop_the_other_files(folder):
    command = f'"{sys.executable}" "{SCRIPT}" a.log clean.log > /dev/full'
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (
        5,
        b"error: stdout cannot be written: No space left on device\n",
    )
    assert (folder / "clean_fixed.log").read_bytes() == MENDED


def test_a_binary_pipe_is_named_as_the_user_named_it(folder):
    done = run(folder, "-", stdin=b"\x7fELF" + bytes(100))
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: -: looks like a binary file")


def test_several_logs_are_all_mended_and_the_worst_exit_code_counts(folder):
    done = run(folder, "gone.log", "a.log")
    assert done.returncode == 2
    assert (folder / "a_fixed.log").read_bytes() == MENDED


def imported_packages(folder, *arguments: str) -> set[str]:
    """Return what Python imports for a command line."""
    command = [sys.executable, "-X", "importtime", str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_script_mends_a_log_without_torch(folder):
    packages = imported_packages(folder, "a.log")
    assert (folder / "a_fixed.log").read_bytes() == MENDED
    assert "chatgot" in packages
    assert "torch" not in packages


@pytest.mark.parametrize("arguments", [["--help"], [], ["a.log", "--bogus"]])
def test_help_and_usage_errors_do_not_wait_for_heavy_imports(folder, arguments):
    packages = imported_packages(folder, *arguments)
    assert "argparse" in packages
    assert not packages & {"ftfy", "colorlog", "tqdm", "numpy", "torch"}


@pytest.mark.parametrize("number", [signal.SIGKILL, *harness.slow(signal.SIGTERM, signal.SIGINT)])
def test_a_kill_halfway_leaves_the_log_whole_and_no_partial_output(folder, number):
    content = BROKEN * 1_500_000
    (folder / "a.log").write_bytes(content)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "a.log"], cwd=folder, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in folder.glob(".a_fixed.log.*.tmp")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    process.wait(timeout=30)
    assert process.returncode in (143, 130, -signal.SIGKILL)
    assert (folder / "a.log").read_bytes() == content
    assert not (folder / "a_fixed.log").exists()
    assert bool(list(folder.glob(".*.tmp"))) == (number == signal.SIGKILL)


@pytest.mark.parametrize(
    ("redirection", "code"), [("a.log >&-", 0), ("- <&-", 0), ("no.log 2>&-", 2)]
)
def test_a_closed_stream_causes_no_traceback(tmp_path, redirection, code):
    (tmp_path / "a.log").write_text("fine\n", encoding="utf-8")
    command = f"{sys.executable} {SCRIPT} {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code


LOG_NAMES = [
    "x.log.1",
    "x.log.12.old",
    "x.log-20260101",
    "x.log-20260101-120000",
    "x.log.2026-11-28",
    "x.log.2026-11-28_10",
    "x.2026-11-28.log",
    "x.log.old",
    "x.err",
    "X.LOG",
    "setupapi.dev.log",
    "0.log.20261128-101112",
    "4f6e-json.log",
    "access_log",
    "access_log.1",
    "error_log-20260101",
    "catalina.out",
    "catalina.out.3",
    "localhost.2026-11-28.txt",
    "messages",
    "messages-20260101",
    "syslog",
    "syslog.1",
    "dmesg.0",
    "nohup.out",
    "job.o12345",
    "job.e12345",
    "stderr",
]
OTHER_NAMES = ["x.csv", "notes.md", "catalog", "x.log.bak", "x.log.bak.1", "login", "run.json"]


def test_a_folder_gives_its_logs_by_their_usual_names(tmp_path):
    compressed = ["syslog.2.gz", "x.log-20260102.xz", "access.log.3.bz2", "messages.zst"]
    for name in [*LOG_NAMES, *OTHER_NAMES, *compressed]:
        (tmp_path / name).write_bytes(BROKEN)
    done = run(tmp_path, "--recursive", "--in-place", ".")
    assert done.returncode == 0
    mended = [name for name in names(tmp_path) if (tmp_path / name).read_bytes() == MENDED]
    assert mended == sorted(LOG_NAMES)
    for name in compressed:
        assert f"{name}: is compressed; not read".encode() in done.stderr
    assert done.stderr.count(b"compressed") == len(compressed)


def test_a_clean_log_of_a_folder_gets_no_copy(folder):
    done = run(folder, "--recursive", ".", "--report", "json")
    assert done.returncode == 0
    fixed = [name for name in names(folder) if "_fixed" in name]
    assert fixed == ["a_fixed.log", "b.log_fixed.1", "sub/c_fixed.txt"]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    outputs = {report["path"]: report["output"] for report in reports}
    assert outputs["clean.log"] is None


def test_a_link_and_its_target_give_one_output_by_the_targets_name(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "far.bin").write_bytes(BROKEN)
    (tmp_path / "run.log").write_bytes(BROKEN)
    for link in ("a_link.log", "z_link.log"):
        (tmp_path / link).symlink_to("run.log")
    for link in ("far1.log", "far2.log"):
        (tmp_path / link).symlink_to("other/far.bin")
    (tmp_path / "broken.log").symlink_to("gone")
    done = run(tmp_path, "--recursive", ".")
    assert (done.returncode, done.stderr) == (0, b"")
    fixed = [name for name in names(tmp_path) if "_fixed" in name]
    assert fixed == ["far1_fixed.log", "run_fixed.log"]
    assert run(tmp_path, "z_link.log").returncode == 0
    assert (tmp_path / "z_link_fixed.log").read_bytes() == MENDED
