"""`trimtab completion`: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import tyro

from trimtab import cli
from trimtab.cli import medclm
from trimtab.cli.arguments import parse
from trimtab.cli.flags import Flag, flags_of, known
from trimtab.cli.language_pruning import LanguagePruneArguments
from trimtab.registry import TRAINED, of_home
from trimtab.runs.shipped import shipped_recipes

SHELLS = ("bash", "zsh", "fish")
NAMES_LEVERS = {"--method", "--methods", "--levers", "--transforms", "--optimizer"}


@dataclass(frozen=True)
class CompletionArguments:
    """Prints the completion of a shell; write it once, and again after an upgrade.

    Examples:
        trimtab completion bash >> ~/.bash_completion
        trimtab completion zsh >> ~/.zshrc
        trimtab completion fish > ~/.config/fish/completions/trimtab.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Which shell."""


def command_flags() -> dict[str, list[Flag]]:
    """The flags of every command, by its words, such as `medclm build`."""
    found: dict[str, list[Flag]] = {}
    for name in cli.COMMANDS:
        if name != "medclm":
            module = importlib.import_module(f"trimtab.cli.{name}_command")
            found[name] = flags_of(getattr(module, f"{name.title()}Arguments"))
    for name in medclm.COMMANDS:
        module = importlib.import_module(f"trimtab.cli.medclm.{medclm.home(name)}")
        found[f"medclm {name}"] = flags_of(getattr(module, f"{name.title()}Arguments"))
    return found


def offered() -> dict[str, list[Flag]]:
    """The flags to complete: of a command that takes two kinds of things, such as prune, those of both."""
    table = command_flags()
    for flag in flags_of(LanguagePruneArguments):
        own = next((one for one in table["prune"] if one.name == flag.name), None)
        if own is None:
            table["prune"].append(flag)
        elif own.value != flag.value and "|" in flag.value:
            both = dict.fromkeys(values_of(own) + values_of(flag))
            table["prune"][table["prune"].index(own)] = replace(own, value="|".join(both))
    return table


def values_of(flag: Flag) -> list[str]:
    """What may follow a flag; empty where that is free."""
    if flag.name in NAMES_LEVERS:
        return sorted(of_home(*TRAINED))
    if flag.positional and flag.name == "RECIPE":
        return sorted(shipped_recipes())
    return flag.value.removesuffix(" ...").split("|") if "|" in flag.value else []


def words_of(flags: Sequence[Flag]) -> list[str]:
    """The spellings to offer: long ones, each once."""
    return sorted({*(name for name in known(flags) if name.startswith("--")), "--help", "--help-all"})


def bash(table: dict[str, list[Flag]]) -> str:
    """A function for bash; zsh runs it too."""
    cases = []
    for command, flags in table.items():
        values = {flag.name: values_of(flag) for flag in flags if not flag.positional and values_of(flag)}
        cases.append(f'    "{command}")')
        cases.append('      case "$flag" in')
        cases += [f'        {name}) words="{" ".join(found)}" ;;' for name, found in sorted(values.items())]
        first = " ".join(word for flag in flags if flag.positional for word in values_of(flag))
        cases.append(f'        *) words="{" ".join(words_of(flags))}"; first="{first}" ;;')
        cases.append("      esac ;;")
    body = "\n".join(cases)
    return f'''# completion of trimtab; made by `trimtab completion`
_trimtab() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" at=2 flag="" words="" first="" i
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join([*cli.COMMANDS, "--help", "--version"])}" -- "$current")); return
  fi
  if [ "$command" = medclm ]; then
    if [ "$COMP_CWORD" -eq 2 ]; then
      COMPREPLY=($(compgen -W "{" ".join([*medclm.COMMANDS, "--help"])}" -- "$current")); return
    fi
    command="medclm ${{COMP_WORDS[2]}}"; at=3
  fi
  for ((i = COMP_CWORD - 1; i >= at; i--)); do
    case "${{COMP_WORDS[i]}}" in --*) flag="${{COMP_WORDS[i]}}"; break ;; esac
  done
  case "$current" in --*) flag="" ;; esac
  case "$command" in
{body}
  esac
  case "$current" in
    --*) ;;
    *) if [ "$COMP_CWORD" -eq "$at" ] && [ -n "$first" ]; then words="$first"; fi
       case "$words" in --*) words="" ;; esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [ -z "$words" ] || [ "$COMP_CWORD" -eq "$at" ]; then COMPREPLY+=($(compgen -f -- "$current")); fi
}}
complete -o filenames -F _trimtab trimtab
'''


def fish(table: dict[str, list[Flag]]) -> str:
    """Lines for fish."""
    lines = ["# completion of trimtab; made by `trimtab completion`"]
    none = "__fish_use_subcommand"
    lines += [f"complete -c trimtab -n {none} -a {name} -d {_quoted(text)}" for name, text in cli.COMMANDS.items()]
    lines += [f"complete -c trimtab -n {none} -l {name}" for name in ("help", "version")]
    inner = (
        "'__fish_seen_subcommand_from medclm; and not __fish_seen_subcommand_from " + " ".join(medclm.COMMANDS) + "'"
    )
    lines += [f"complete -c trimtab -n {inner} -a {name} -d {_quoted(text)}" for name, text in medclm.COMMANDS.items()]
    for command, flags in table.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.split())
        outside = "" if command.startswith("medclm") else "; and not __fish_seen_subcommand_from medclm"
        start = f"complete -c trimtab -n '{seen}{outside}'"
        for flag in flags:
            values = f" -xa {_quoted(' '.join(values_of(flag)))}" if values_of(flag) else ""
            if flag.positional:
                lines += [f"{start} -a {_quoted(' '.join(values_of(flag)))}"] if values else []
                continue
            takes = "" if flag.switch else values or " -r"
            says = _quoted(flag.text.partition(". ")[0][:80])
            for name in (flag.name, *flag.others):
                lines.append(f"{start} -{'l' if name.startswith('--') else 's'} {name.lstrip('-')}{takes} -d {says}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def run(arguments: Sequence[str]) -> int:
    """Parse and print."""
    given = parse(CompletionArguments, arguments, "completion")
    table = offered()
    if given.shell == "fish":
        print(fish(table), end="")
    else:
        start = "autoload -U +X bashcompinit && bashcompinit\n" if given.shell == "zsh" else ""
        print(start + bash(table), end="")
    return 0
