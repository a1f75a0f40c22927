"""The `trimtab` command: one module per subcommand, arguments by tyro, output by rich."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trimtab import __version__
from trimtab.checks import hint
from trimtab.inputs import CODE_VARIABLE, bad_input, shortened

COMMANDS = {
    "demo": "the whole job on embedded data, in under three minutes",
    "new": "write a recipe file to edit, from a shipped one",
    "train": "train one recipe into a run folder",
    "compare": "train and prune several methods over several seeds, then report",
    "tune": "choose a method's setting on the validation split",
    "prune": "prune a finished run, or a language model; measure what is left",
    "gradients": "how the gradients of tracked runs went: a summary and figures",
    "precision": "train in several number formats; what rounding does to each layer",
    "curvature": "how curved the loss is around finished networks, dense and pruned",
    "watch": "a page of runs while they train, served on this machine",
    "report": "make the HTML report and the summary of one or more folders",
    "export": "write a finished run as a smaller file, as ONNX or torch.export",
    "push": "share a finished run, pruned: a folder or the Hugging Face Hub",
    "pull": "take a shared run over as a run folder",
    "compress": "write a finished run into few bytes: zeros, bits, entropy code",
    "medclm": "questions for vision-language models, from boxes and organ masks",
    "list": "list levers, models, datasets, recipes",
    "show": "one lever: what it does, formula, settings, source, card",
    "completion": "print the completion of bash, zsh or fish",
}
TRUST = "--trust-code"
EPILOGUE = f"""{TRUST}: run the package.module:function a run folder names as its network
exit codes: 0 done, 1 a run failed, 2 bad input, 130 stopped (again: goes on)"""


def usage() -> str:
    """What `trimtab --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        f"trimtab {__version__}: small levers on a training run, honest proof that they work\n\n"
        "usage: trimtab COMMAND ... (--help: short, --help-all: all); trimtab --version\n\n"
        + "\n".join(lines)
        + f"\n{EPILOGUE}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage(), end="")
        return 0 if words else 2
    if words[0] in {"-V", "--version"}:
        print(f"trimtab {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if words[0] != "train" and words[:2] != ["medclm", "train"] and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(
            f"trimtab {name}: runs in one process; under torchrun only `trimtab train` and `trimtab medclm train` do",
            file=sys.stderr,
        )
        return 2
    if name not in COMMANDS:
        print(f"trimtab: no command {name!r}; {hint(name, COMMANDS, 'commands')}", file=sys.stderr)
        return 2
    with _code_of_networks(rest):
        return _run(name, [word for word in rest if word != TRUST])


@contextmanager
def _code_of_networks(words: Sequence[str]) -> Iterator[None]:
    """Let the networks run that the user named in these words; any network with `TRUST`."""
    before = os.environ.get(CODE_VARIABLE)
    typed = [part for word in words for part in re.split("[=,]", word) if ":" in part]
    os.environ[CODE_VARIABLE] = "any" if TRUST in words else before or ",".join(typed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CODE_VARIABLE]
        else:
            os.environ[CODE_VARIABLE] = before


def _run(name: str, rest: list[str]) -> int:
    module = importlib.import_module("trimtab.cli.medclm" if name == "medclm" else f"trimtab.cli.{name}_command")
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops like Ctrl-C
    try:
        code: int = module.run(rest)
    except KeyboardInterrupt as error:
        print(f"\ntrimtab: {str(error) or 'stopped; run the same command again to go on'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except bad_input(ImportError) as error:
        return _said(getattr(error, "command", "") or name, error, 2)
    except (ArithmeticError, RuntimeError, LookupError) as error:  # divergence, torch's own errors
        return _said(name, error, 1)
    return code


def _said(name: str, error: Exception, code: int) -> int:
    print(f"trimtab {name}: {shortened(str(error) or type(error).__name__)}", file=sys.stderr)
    return code
