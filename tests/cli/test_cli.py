"""The front of the command line: the table of commands, errors, exit codes, what is printed."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tfc import errors
from tfc.cli import COMMANDS, Entry, LazyGroup, cli
from tfc.cli.console import human_bytes, human_count, human_seconds, printable, progress, table
from tfc.cli.console import out as console

PIPELINE = [
    "export",
    "optimize",
    "build-engine",
    "verify",
    "bench",
    "run",
    "report",
    "inspect",
    "doctor",
]
HEAVY = (
    *("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx"),
    "pyarrow",
)
ESCAPE = "\x1b"


def tfc(*arguments, **options):
    """Run the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tfc", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def in_terminal(*arguments, columns, **environment):
    """What the real command line prints to a terminal of so many columns."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tfc", *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment},
    )
    os.close(terminal)
    pieces = []
    try:
        while piece := os.read(master, 65536):
            pieces.append(piece)
    except OSError as error:
        if error.errno != errno.EIO:  # the other end was closed
            raise
    process.wait()
    os.close(master)
    return b"".join(pieces).decode().replace("\r\n", "\n")


# The table of commands


def test_help_lists_every_command_in_the_order_of_the_pipeline():
    ended = tfc("--help")
    assert ended.returncode == 0
    commands = ended.stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in commands.splitlines()] == PIPELINE
    for code in ("0  done", "1  a check", "5  bad input", "70  a defect", "130  interrupted"):
        assert code in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in PIPELINE)], ids=" ".join
)
def test_nothing_heavy_is_imported_to_print_help(arguments):
    code = (
        "import sys\n"
        "from tfc.cli import cli\n"
        "cli.main(sys.argv[1:], prog_name='tfc', standalone_mode=False)\n"
        "print('loaded', *sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    loaded = ended.stderr.split()
    assert loaded[0] == "loaded"
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}
    if arguments == ["--help"]:
        assert [name for name in loaded if name.startswith("tfc.")] == ["tfc.cli"]


@pytest.mark.parametrize("name", PIPELINE)
def test_a_command_is_imported_when_it_is_called(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_every_line_of_the_table_fits_the_help():
    assert all(len(entry.help) <= 62 and entry.help.endswith(".") for entry in COMMANDS.values())


def test_version():
    assert re.fullmatch(r"tfc \d+\.\d+\.\d+\S*\n", tfc("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "No such command 'exprt'. Did you mean 'export'?"),
        (["zzz"], "No such command 'zzz'.\n"),
        (["--zzz"], "No such option"),
        (["inspect"], "Missing argument 'ARTIFACT'"),
        (["inspect", "a", "--zzz"], "No such option"),
    ],
)
def test_a_wrong_call_exits_2(arguments, message):
    ended = tfc(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stdout == ""


# Errors


def call(raised, *arguments, subcommand_arguments=()):
    """Run a command that raises through a group like the real one."""

    @click.command("fail")
    def command():
        raise raised

    class Here(Entry):
        def load(self):
            return command

    group = LazyGroup("tfc", table={"fail": Here("", "Fail.")}, callback=lambda: None)
    return CliRunner().invoke(group, [*arguments, "fail", *subcommand_arguments])


def every_error():
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TfcError)
    ]


@pytest.mark.parametrize("kind", every_error())
def test_each_error_becomes_two_lines_and_its_exit_code(kind):
    ended = call(kind("the model is broken", where="a.onnx", fix="Mend it"))
    assert ended.exit_code == kind.exit_code
    assert ended.stderr == "tfc: error: a.onnx: the model is broken\n  Mend it\n"
    assert ended.stdout == ""


def test_an_error_of_several_lines_keeps_them():
    ended = call(errors.ContractNotReached("attention 5/6:\n  layer 5: no scale\n  layer 6: x"))
    assert ended.stderr == ("tfc: error: attention 5/6:\n    layer 5: no scale\n    layer 6: x\n")


def test_an_error_does_not_steer_the_terminal():
    ended = call(errors.BadInput(f"unknown field '{ESCAPE}[2J'"))
    assert ended.stderr == "tfc: error: unknown field '\\x1b[2J'\n"


def test_an_unexpected_error_is_a_defect_of_tfc():
    ended = call(KeyError("weights"))
    assert ended.exit_code == 70
    assert ended.stderr == (
        "tfc: internal error: KeyError: 'weights'. Run again with --debug for the traceback\n"
    )


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("raised", [KeyError("weights"), errors.BadInput("weights")])
def test_debug_shows_the_traceback_on_either_side_of_the_command(raised, where):
    if where == "before":
        ended = call(raised, "--debug")
    else:
        ended = call(raised, subcommand_arguments=["--debug"])
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert "raise raised" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("tfc: ")
    assert "Run again" not in ended.stderr


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_exits_130(raised):
    ended = call(raised)
    assert ended.exit_code == 130
    assert ended.stderr == "tfc: interrupted\n"


def test_a_full_disk_behind_stdout_is_no_defect():
    ended = call(OSError(errno.ENOSPC, "No space left on device"))
    assert ended.exit_code == 4
    assert "no space left on the disk" in ended.stderr


def test_a_pipe_that_broke_elsewhere_is_not_hidden():
    assert call(BrokenPipeError(errno.EPIPE, "Broken pipe")).exit_code == 70


@pytest.mark.parametrize("raised", [click.UsageError("wrong"), click.BadParameter("wrong")])
def test_the_usage_errors_of_a_command_exit_2(raised):
    assert call(raised).exit_code == 2


def test_exit_codes_of_commands_pass():
    assert call(click.exceptions.Exit(4)).exit_code == 4
    assert call(SystemExit(1)).exit_code == 1


def test_a_real_interrupt_leaves_no_traceback(tmp_path):
    code = (
        "import os, signal, tfc.cli.inspect as inspect\n"
        "inspect.Artifact.open = lambda path: os.kill(os.getpid(), signal.SIGINT)\n"
        "from tfc.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert ended.returncode == 130
    assert ended.stderr == "tfc: interrupted\n"


# What is printed, and where


def test_a_reader_that_goes_away_is_no_error(make_artifact):
    """As in `tfc inspect artifact | head -0`."""
    command = [sys.executable, "-m", "tfc", "inspect", str(make_artifact().path)]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, text=True)
    os.close(writing)
    assert ended.returncode == 141
    assert ended.stderr == ""


def test_a_pipe_gets_plain_text_of_80_columns(make_artifact):
    text = tfc("inspect", make_artifact().path, env={**os.environ, "COLUMNS": "200"}).stdout
    assert ESCAPE not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_terminal_gets_styles_and_its_own_width(make_artifact):
    path = make_artifact().path
    assert ESCAPE in in_terminal("inspect", path, columns=80)
    plain = in_terminal("inspect", path, columns=60, NO_COLOR="1")
    assert ESCAPE not in plain
    assert max(map(len, plain.splitlines())) <= 60
    assert "text-classification, single label" in plain


def test_errors_are_wrapped_on_a_terminal_and_whole_elsewhere(tmp_path):
    path = tmp_path / "none"
    assert f"tfc: error: {path}: there is no such folder\n" in tfc("inspect", path).stderr
    lines = in_terminal("inspect", path, columns=30, NO_COLOR="1").splitlines()
    assert lines[0].startswith("tfc: error:")
    assert "  Create the artifact with:" in lines
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_terminal_that_cannot_show_a_label_gets_a_question_mark(make_artifact):
    checkpoint = make_artifact().manifest.checkpoint
    odd = type(checkpoint)(**{**vars(checkpoint), "source": "модель"})
    path = make_artifact(checkpoint=odd).path
    ended = tfc("inspect", path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0
    assert "checkpoint  ??????" in ended.stdout


def test_brackets_in_a_cell_are_not_markup():
    grid = table("", ["tensor", ">size"])
    grid.add_row("[bold]x[/bold] [batch]", "1")
    with console.capture() as captured:
        console.print(grid)
    assert "[bold]x[/bold] [batch]" in captured.get()


def test_progress_is_silent_where_stderr_is_no_terminal(capfd):
    with progress("working") as show:
        show(1, 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (87_300_000, "87.3 MB"),
        (999_960, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_human_count():
    assert [human_count(n) for n in (950, 22_713_216, 7 * 10**9)] == ["950", "22.7 M", "7.0 G"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (2e-5, "20 µs"),
        (0.0042, "4.2 ms"),
        (0.42, "420 ms"),
        (3.42, "3.4 s"),
        (59.96, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3725, "1 h 2 min"),
    ],
)
def test_human_seconds(seconds, text):
    assert human_seconds(seconds) == text


def test_printable_keeps_text_and_spells_out_control_characters():
    assert printable("naïve 模型 [x]\nnext") == "naïve 模型 [x]\nnext"
    assert printable("\x1b[31m\r\x9b") == "\\x1b[31m\\r\\x9b"


def test_run_as_a_module_and_as_a_script_are_the_same():
    script = Path(sys.executable).with_name("tfc")
    if not script.is_file():
        pytest.skip("tfc is not installed as a script beside this interpreter")
    text = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert text == tfc("--help").stdout


def test_quiet_prints_json_errors_and_nothing_else(tiny_artifact: Path):
    """Before or after the command's name; the next command of the same process prints again."""
    runner = CliRunner()
    shown = runner.invoke(cli, ["inspect", str(tiny_artifact)])
    assert shown.exit_code == 0
    assert "Signature" in shown.output
    for arguments in (["-q", "inspect", str(tiny_artifact)], ["inspect", str(tiny_artifact), "-q"]):
        assert runner.invoke(cli, arguments).output == ""
    asked = runner.invoke(cli, ["inspect", str(tiny_artifact), "--quiet", "--json"])
    assert json.loads(asked.output)["task"]["name"] == "text-classification"
    failed = runner.invoke(cli, ["-q", "inspect", str(tiny_artifact / "none")])
    assert failed.exit_code == 5
    assert "there is no such folder" in failed.output
    assert runner.invoke(cli, ["inspect", str(tiny_artifact)]).output == shown.output


@pytest.mark.ort
def test_export_and_report_for_machines(tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path):
    runner = CliRunner()
    done = runner.invoke(cli, ["export", str(tiny_checkpoint), "-o", str(tiny_artifact), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["skipped"]
    assert found["task"] == "text-classification"
    assert 0 < found["parity"]["relative"] < 1e-5
    assert found["bytes"] > 1e6
    page = tmp_path / "report.html"
    done = runner.invoke(cli, ["report", str(tiny_artifact), "-o", str(page), "--json"])
    assert json.loads(done.stdout) == {"written": str(page)}
