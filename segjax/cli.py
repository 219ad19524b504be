"""The command line: `segjax experiments | data | weights | evaluate | predict | ...`."""

import sys

import tyro
from tyro.extras import SubcommandApp

from segjax.commands.crf import crf_command
from segjax.commands.data import check_command, list_command, prepare_command, shards_command
from segjax.commands.errors import EXPECTED, UserError, end_with_message
from segjax.commands.evaluate import evaluate_command
from segjax.commands.experiments import copy_command
from segjax.commands.experiments import list_command as list_experiments_command
from segjax.commands.export import export_command
from segjax.commands.predict import predict_command
from segjax.commands.publish import publish_command
from segjax.commands.record import record_command
from segjax.commands.report import report_command
from segjax.commands.results import results_command
from segjax.commands.weights import add_command, get_command
from segjax.commands.weights import list_command as list_weights_command
from segjax.messages.hints import did_you_mean

COMMANDS = {
    "experiments": {"list": list_experiments_command, "copy": copy_command},
    "data": {
        "prepare": prepare_command,
        "check": check_command,
        "list": list_command,
        "shards": shards_command,
    },
    "weights": {"list": list_weights_command, "get": get_command, "add": add_command},
    "evaluate": evaluate_command,
    "predict": predict_command,
    "export": export_command,
    "crf": crf_command,
    "report": report_command,
    "record": record_command,
    "results": results_command,
    "publish": publish_command,
}
GROUP_HELP = {
    "experiments": "List the experiment files, and copy one to run and edit it.",
    "data": "Prepare, check and list data sets.",
    "weights": "List published weights, and get them.",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs a command.

    Args:
      arguments: the command line; None takes this process's.

    Raises:
      SystemExit: with status 2 and a message on standard error for a user's mistake, and with
        status 1 if `data check` finds problems.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _check_command(arguments)
        _application(COMMANDS).cli(
            prog="segjax",
            description="Image segmentation in JAX: U-Net, DeepLab and Mask R-CNN. An experiment "
            "file trains a model: `segjax experiments` lists and copies them. The other commands "
            "prepare its data and use its results.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except EXPECTED as error:
        end_with_message(error, status=2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def _application(commands: dict) -> SubcommandApp:
    application = SubcommandApp()
    for name, command in commands.items():
        if isinstance(command, dict):
            application.command(_application(command), name=name, help=GROUP_HELP[name])
        else:
            application.command(command, name=name)
    return application


def _check_command(arguments: list[str]) -> None:
    """Raises UserError for an unknown command, with the nearest one, which tyro does not name."""
    known = COMMANDS
    for word in arguments:
        if not isinstance(known, dict) or word.startswith("-"):
            return
        if word not in known:
            hint = did_you_mean(word, known) or "."
            raise UserError(f"no command {word!r}{hint} Commands: {', '.join(known)}")
        known = known[word]


if __name__ == "__main__":
    main()
