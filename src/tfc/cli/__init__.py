"""The `tfc` command line: a table of commands, each imported only when it is called.

Commands parse, call and print. What they raise becomes a sentence and an exit code here, and
nowhere else; `tfc.errors` lists the codes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

_DEBUG = "tfc.debug"  # the key of the --debug flag in click's Context.meta


@dataclass(frozen=True)
class Entry:
    """A command before it is imported: where it is (`module:attribute`), its line in the help."""

    target: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


# In the order of the pipeline, which is the order of the help.
COMMANDS = {
    "export": Entry("tfc.cli.export:command", "Turn a checkpoint into an artifact: ONNX and more."),
    "optimize": Entry("tfc.cli.optimize:command", "Fuse and lower the graph; set its precision."),
    "build-engine": Entry("tfc.cli.build_engine:command", "Compile the graph into an engine."),
    "verify": Entry("tfc.cli.verify:command", "Check that an engine still says what PyTorch says."),
    "bench": Entry("tfc.cli.bench:command", "Measure the throughput and latency of an engine."),
    "run": Entry("tfc.cli.run:command", "Run a batch job: rows in, predictions out."),
    "report": Entry("tfc.cli.report:command", "Write a page about an artifact, HTML or Markdown."),
    "inspect": Entry("tfc.cli.inspect:command", "Show what an artifact holds."),
    "doctor": Entry("tfc.cli.doctor:command", "Show what this machine can build and run."),
}


class LazyGroup(click.Group):
    """A click group over a table of entries, and the one place where errors become exit codes."""

    def __init__(self, *args: Any, table: dict[str, Entry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table
        self.params += [_quiet_option(), _debug_option()]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; it takes `--debug` and `--quiet` too, after its name."""
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        command = entry.load()
        if not any("--debug" in option.opts for option in command.params):
            command.params += [_quiet_option(hidden=True), _debug_option(hidden=True)]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name when there is no such command."""
        if args[0] not in self.table and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], self.table, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever it raises becomes a message and an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            from tfc.cli.failure import report

            ctx.exit(report(error, debug=ctx.meta.get(_DEBUG, False)))
        return result


def _quiet_option(hidden: bool = False) -> click.Option:
    def hush(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            from tfc.cli.console import quiet

            ctx.with_resource(quiet())

    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=hush,
        hidden=hidden,
        help="Print nothing but errors, warnings, and what --json asks for.",
    )


def _debug_option(hidden: bool = False) -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_DEBUG] = ctx.meta.get(_DEBUG, False) or value

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=remember,
        hidden=hidden,
        help="Show the traceback of an error.",
    )


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Exit codes:
   0  done
   1  a check failed (parity, accuracy)
   2  the call is wrong
   3  a fusion or precision contract does not hold
   4  this machine lacks something
   5  bad input or artifact
  70  a defect in tfc
 130  interrupted
 143  a batch job stopped in good order, as SIGTERM asked
""",
)
@click.version_option(package_name="tfc", prog_name="tfc", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile a fine-tuned Transformer into a verified, fast engine.

    The commands work on one folder, the artifact: 'export' makes it from a checkpoint, the steps
    after it add to it. 'tfc COMMAND --help' tells more about each.
    """


def main() -> None:
    """Entry point of the `tfc` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a label may hold what the terminal cannot show
    cli.main(prog_name="tfc")
