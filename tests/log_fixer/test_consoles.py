"""What consoles of other programs show last comes out of their logs, and no message is lost."""

import io

import pytest
from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from tqdm import tqdm

from chatgot.log_fixer.files import FixReport, Options, fix_stream

BACK = "\b" * 44
APT_BAR = "\x1b7\x1b[24;0f\x1b[42m\x1b[30mProgress: [ 50%]\x1b[49m\x1b[39m [#####.....] \x1b8"


def fix(text: str, **options) -> str:
    """Return the mended text of a log; mending it again changes nothing."""
    fixed = mended(text, **options)
    assert mended(fixed, **options) == fixed
    return fixed


def mended(text: str, **options) -> str:
    out = io.BytesIO()
    fix_stream(io.BytesIO(text.encode()), out, FixReport("log"), Options(**options))
    return out.getvalue().decode()


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, _environ={"TERM": "xterm"})
    return console, out


def pull(states: list[tuple[str, str]]) -> str:
    """Return what `docker pull` writes: a row for each layer, drawn anew in its place."""
    names: list[str] = []
    log = "latest: Pulling from library/x\n"
    for name, state in states:
        if name not in names:
            names.append(name)
            log += f"{name}: {state}\n"
        else:
            up = len(names) - names.index(name)
            log += f"\x1b[{up}A\x1b[2K\r{name}: {state}\r\x1b[{up}B"
    return log + "Status: Downloaded newer image\n"


def test_layers_of_a_pull_show_their_last_states():
    states = [("a1", "Pulling fs layer"), ("b2", "Pulling fs layer"), ("c3", "Waiting")]
    states += [("a1", "Downloading [==>  ] 1MB/5MB"), ("b2", "FAILED disk full")]
    states += [("c3", "Verifying Checksum"), ("a1", "Pull complete"), ("c3", "Pull complete")]
    assert fix(pull(states)).splitlines()[1:-1] == [
        "a1: Pull complete",
        "b2: FAILED disk full",
        "c3: Pull complete",
    ]


def test_nested_bars_leave_the_outer_one_and_the_messages():
    out = io.StringIO()
    for step in tqdm(range(3), desc="outer", file=out, ncols=60, mininterval=0):
        for _ in tqdm(range(4), desc="inner", file=out, leave=False, mininterval=0, position=1):
            pass
        if step == 1:
            tqdm.write("FAILED disk full", file=out)
    print("finished", file=out)
    message, bar, last = fix(out.getvalue()).splitlines()
    assert (message, last) == ("FAILED disk full", "finished")
    assert bar.startswith("outer: 100%")


def test_bars_of_rich_collapse_below_a_message():
    console, out = terminal()
    with Progress(console=console, auto_refresh=False) as progress:
        tasks = [progress.add_task(f"Task {name}", total=3) for name in "AB"]
        for step in range(3):
            for task in tasks:
                progress.advance(task)
                progress.refresh()
            if step == 1:
                console.print("FAILED disk full")
    console.print("all done")
    message, first, second, last = fix(out.getvalue()).splitlines()
    assert (message, last) == ("FAILED disk full", "all done")
    assert first.startswith("Task A ")
    assert "100%" in first
    assert second.startswith("Task B ")
    assert "100%" in second


def test_a_live_table_of_rich_shows_its_last_state_once():
    console, out = terminal()
    with Live(console=console, auto_refresh=False) as live:
        for step in range(3):
            table = Table("job", "state")
            for job in range(2):
                table.add_row(f"job{job}", "done" if job < step else "running")
            live.update(table, refresh=True)
            if step == 1:
                live.console.print("FAILED disk full")
    lines = fix(out.getvalue()).splitlines()
    assert lines[0] == "FAILED disk full"
    assert [line.split()[1:4:2] for line in lines if "job" in line] == [
        ["job", "state"],
        ["job0", "done"],
        ["job1", "done"],
    ]
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        pytest.param(
            "\x1b[1G\x1b[0K⠙\x1b[1G\x1b[0K⠹\x1b[1G\x1b[0K⠸ reify:lodash: timing\x1b[1G\x1b[0K\n"
            "added 5 packages in 2s\n",
            "\nadded 5 packages in 2s\n",
            id="npm",
        ),
        pytest.param(
            "\x1b[2K\x1b[1G[1/4] Resolving packages...\n"
            "\x1b[2K\x1b[1G[2/4] Fetching packages...\n"
            "\x1b[1G[----] 0/10\x1b[1G[##--] 5/10"
            "\x1b[1G[####] 10/10\x1b[2K\x1b[1G[3/4] Linking...\n"
            "Done in 1.2s.\n",
            "[1/4] Resolving packages...\n[2/4] Fetching packages...\n[3/4] Linking...\n"
            "Done in 1.2s.\n",
            id="yarn",
        ),
        pytest.param(
            "Progress: resolved 1, reused 0, downloaded 0, added 0\x1b[0K\n"
            "\x1b[1A\x1b[0KProgress: resolved 9, reused 3, downloaded 5, added 9\x1b[0K\n"
            "\x1b[1A\x1b[0KProgress: resolved 9, reused 3, downloaded 5, added 9, done\x1b[0K\n"
            "WARN deprecated x\n",
            "Progress: resolved 9, reused 3, downloaded 5, added 9, done\nWARN deprecated x\n",
            id="pnpm",
        ),
        pytest.param(
            "\r0% [Working]\r            \rGet:1 http://x InRelease\n\r"
            "0% [1 InRelease 12.3 kB/110 kB 11%]\r                                   \r"
            "Fetched 110 kB in 1s\nReading package lists... 0%\r"
            "Reading package lists... 50%\rReading package lists... Done\n",
            "Get:1 http://x InRelease\nFetched 110 kB in 1s\nReading package lists... Done\n",
            id="apt lists",
        ),
        pytest.param(
            "\n"
            "\x1b[1A\x1b[1m<-------------> 0% INITIALIZING [0s]\x1b[m\x1b[36D\x1b[1B"
            "\x1b[1m> IDLE\x1b[m\x1b[6D\x1b[1A\x1b[1m<====---------> 33% "
            "EXECUTING [1s]\x1b[m\x1b[34D\x1b[1B> :compileJava\x1b[14D"
            "\x1b[1A\x1b[0K\x1b[1B\x1b[0K\x1b[1A> Task :compileJava FAILED\n"
            "\x1b[0K\x1b[32;1mBUILD FAILED\x1b[m in 2s\n",
            "> Task :compileJava FAILED\nBUILD FAILED in 2s\n",
            id="gradle",
        ),
        pytest.param(
            "   Compiling a v1\n    Building [=>    ] 1/3: a\r\x1b[K   Compiling b v1\n"
            "    Building [==>   ] 2/3: b, c\r    Building [===>  ] 3/3: d        \r"
            "\x1b[K    Finished dev\n",
            "   Compiling a v1\n   Compiling b v1\n    Finished dev\n",
            id="cargo",
        ),
        pytest.param(
            "Downloading x.whl (5 MB)\n"
            "\x1b[?25l   \x1b[38;5;237m━━━━\x1b[0m \x1b[32m0.0/5.0 MB\x1b[0m "
            "\x1b[31m?\x1b[0m eta \x1b[36m-:--:--\x1b[0m\r"
            "\x1b[2K   ━━━━ 5.0/5.0 MB 10.1 MB/s eta 0:00:00\n\x1b[?25hInstalled\n",
            "Downloading x.whl (5 MB)\n   ━━━━ 5.0/5.0 MB 10.1 MB/s eta 0:00:00\nInstalled\n",
            id="pip",
        ),
        pytest.param(
            " 1/10 [==>...........] - ETA: 9s - loss: 2.5"
            + BACK
            + " 2/10 [====>.........] - ETA: 8s - loss: 2.25"
            + BACK
            + "\r"
            "10/10 [==============] - 1s 10ms/step - loss: 1.5\n",
            "10/10 [==============] - 1s 10ms/step - loss: 1.5\n",
            id="keras",
        ),
        pytest.param(
            "\x1b[1m 1/10\x1b[0m \x1b[37m━━━━\x1b[0m 9s 1s/step - loss: 2.5" + BACK + "\r"
            "\x1b[1m10/10\x1b[0m ━━━━ 1s 9ms/step - loss: 1.50 - val_loss: 2\n",
            "10/10 ━━━━ 1s 9ms/step - loss: 1.50 - val_loss: 2\n",
            id="keras3",
        ),
        pytest.param(
            "Cloning into 'x'...\nremote: Counting objects:  10% (1/10)\x1b[K\r"
            "remote: Counting objects: 100% (10/10)\x1b[K\r"
            "remote: Counting objects: 100% (10/10), done.\x1b[K\n"
            "Receiving objects:  10% (1/10)\r"
            "Receiving objects: 100% (10/10), 1.2 MiB | 2 MiB/s, done.\n",
            "Cloning into 'x'...\nremote: Counting objects: 100% (10/10), done.\n"
            "Receiving objects: 100% (10/10), 1.2 MiB | 2 MiB/s, done.\n",
            id="git",
        ),
        pytest.param(
            "\rx.txt      0%[                 ]       0  --.-KB/s               \r"
            "x.txt    100%[================>]   1.2M  3.4MB/s    in 0.3s    \n\n",
            "x.txt    100%[================>]   1.2M  3.4MB/s    in 0.3s\n\n",
            id="wget",
        ),
        pytest.param(
            "  % Total    % Received\n\r"
            "  0     0    0     0    0     0      0      0 --:--:-- --:--:-- --:--:--     0\r"
            "100  1256  100  1256    0     0   2000      0 --:--:-- --:--:-- --:--:--  2000\n",
            "  % Total    % Received\n"
            "100  1256  100  1256    0     0   2000      0 --:--:-- --:--:-- --:--:--  2000\n",
            id="curl",
        ),
        pytest.param(
            "[1/3] Building CXX object a.o\r[2/3] Building CXX object bb.o\x1b[K\r"
            "[3/3] Linking x\x1b[K\n",
            "[3/3] Linking x\n",
            id="ninja",
        ),
        pytest.param(
            "\x1b[32mLoading:\x1b[0m 0 packages\r"
            "\x1b[1A\x1b[K\x1b[32mAnalyzing:\x1b[0m target //x\n\r"
            "\x1b[1A\x1b[K[5 / 10] Compiling a.cc\n\r\x1b[1A\x1b[KERROR: a.cc failed\n"
            "[6 / 10] Compiling b.cc\n\r\x1b[1A\x1b[KINFO: Build completed\n",
            "Analyzing: target //x\nERROR: a.cc failed\nINFO: Build completed\n",
            id="bazel",
        ),
        pytest.param(
            "section_start:1560896352:step\r\x1b[0K\x1b[36;1mRunning step\x1b[0;m\nhello\n"
            "section_end:1560896353:step\r\x1b[0K\n",
            "Running step\nhello\n\n",
            id="gitlab",
        ),
        pytest.param(
            "\x1b[8mha:////4Abc/+==\x1b[0m[Pipeline] sh\n"
            "Started by user \x1b[8mha:////4X==\x1b[0mjoe\n",
            "[Pipeline] sh\nStarted by user joe\n",
            id="jenkins",
        ),
        pytest.param(
            "Hello\x1b[10Gworld\x1b[5Cx\n",
            "Hello    world     x\n",
            id="ink",
        ),
        pytest.param(
            "⠋ Loading\x1b[2K\x1b[1G⠙ Loading\x1b[2K\x1b[1G✔ Loaded\n",
            "✔ Loaded\n",
            id="ora",
        ),
        pytest.param(
            "| work\x1b[6D/ work\x1b[6D- work\x1b[Gdone  \n",
            "done\n",
            id="ora2",
        ),
        pytest.param(
            "N\x08NA\x08AM\x08ME\x08E  _\x08f_\x08i_\x08l_\x08e wait |\x08/\x08-\x08\\\x08 done\n",
            "NAME  file wait  done\n",
            id="over",
        ),
        pytest.param(
            "Unpacking foo ...\r\n\n\x1b7\x1b[0;23r\x1b8\x1b[1A\x1b[J"
            + APT_BAR
            + "Setting up foo ...\r\n\n\x1b7\x1b[0;24r\x1b8\x1b[1A\x1b[J"
            "Processing triggers ...\r\n",
            "Unpacking foo ...\r\nSetting up foo ...\r\nProcessing triggers ...\r\n",
            id="apt",
        ),
    ],
)
def test_a_console_shows_its_last_state(log, fixed):
    assert fix(log) == fixed


@pytest.mark.parametrize("message", ["FAILED disk full", "message seven", "2026-01-02 login bob"])
@pytest.mark.parametrize("bar", ["\x1b[A\x1b[2K 50%|##  |\n", "\x1b[A\r\x1b[K7/9\n"])
def test_a_message_that_a_bar_overwrites_is_kept_above_it(message, bar):
    assert fix(f"{message}\n{bar}").splitlines()[0] == message


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        ("login failed for root\rlogin ok for bob\n", r"login failed for root\x0dlogin ok for bob"),
        ("part one\rpart two\n", r"part one\x0dpart two"),
        (
            "login failed\r                  \rall ok\n",
            r"login failed\x0dall ok",
        ),
        ("first line\rsecond line\rthe third\r", "first line\nsecond line\nthe third"),
        ("step 1 loss 2\rstep 2 loss 1\r", "step 1 loss 2\nstep 2 loss 1"),
        ("2026-01-02 user a\r2026-01-02 user b\n", r"2026-01-02 user a\x0d2026-01-02 user b"),
        ("Downloading 100 files\rDownloading 5\n", "Downloading 500 files"),
        ("login failed for root\r\x1b[Kok\n", "login failed for root\nok"),
        ("waiting for b\r\x1b[Kok\n", "ok"),
        ("root from 6.6.6.6\rroot from 9.9.9.9\n", r"root from 6.6.6.6\x0droot from 9.9.9.9"),
        ("refused: user 1\rrefused: user 2\n", r"refused: user 1\x0drefused: user 2"),
        ("ok\rall ok\rall ok\r", "ok\nall ok\nall ok"),
        ("frame= 1 speed=N/A\rframe= 9 speed=2x \n", "frame= 9 speed=2x"),
        ("Progress (1): 9 kB\r                  \rDownloaded a\n", "Downloaded a"),
    ],
)
def test_a_return_erases_only_what_the_new_text_is_a_newer_state_of(log, fixed):
    assert fix(log).rstrip("\n") == fixed
    assert fix(log, remove_ansi=False).count("\r") == 0


def test_a_full_screen_program_leaves_what_was_there_before():
    page = "\x1b[?1049h\x1b[H\x1b[2Jpage 1\npage 2\n:\x1b[K\x1b[?1049l"
    assert fix(f"before\n{page}after\n") == "before\nafter\n"
    alarm = "\x1b[?1049h\x1b[Hdisk error on sda\n\x1b[?1049l"
    assert "disk error on sda\n" in fix(f"before\n{alarm}after\n")
    assert "page 1\n" in fix(f"before\n{page.removesuffix(chr(27) + '[?1049l')}")


def test_kept_sequences_keep_their_moves():
    log = "a\n\x1b[1A\x1b[2K\x1b[32mb\x1b[0m\n"
    assert fix(log, remove_ansi=False) == log
    states = pull([("a1", "Waiting"), ("b2", "Waiting"), ("a1", "9%"), ("a1", "Pull complete")])
    assert fix(states, remove_ansi=False) == states.replace("\r", "\x1b[G")
