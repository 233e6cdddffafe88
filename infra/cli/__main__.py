"""The one entry point. A command is a module of this package whose `command` is a click command.

To add one: write `infra/cli/<name>.py` and put its name into COMMANDS.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError

from meterline.errors import MeterlineError

COMMANDS = (
    "advise",
    "books",
    "breaker",
    "catalog",
    "customers",
    "dead-letters",
    "deploy",
    "events",
    "keys",
    "setup",
)


class _Commands(click.Group):
    """Loads a command's module only when it is asked for.

    What goes wrong at AWS or Stripe, and what no command has words for, is told in one line, with
    status 1.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MeterlineError, BotoCoreError, ClientError) as error:
            raise click.ClickException(str(error) or type(error).__name__) from error
        except UnicodeDecodeError as error:
            raise click.ClickException(f"a file that is read here is not UTF-8: {error}") from error

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"infra.cli.{name.replace('-', '_')}").command
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
def main() -> None:
    """Set Meterline up and operate it."""


if __name__ == "__main__":
    main(prog_name="python -m infra.cli")
