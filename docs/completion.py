"""bash's completion of our options and of their values, up to the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portwrap.launch.drivers import CHOICES

if TYPE_CHECKING:
    from portwrap.cli.parser import Option, Parser

FILES, NOTHING = "FILE", ""
CHOICES_OF = {"DRIVER": " ".join(CHOICES), "PATH": FILES}
"""What stands for a value in --help, and what it can be."""

SCRIPT = """\
# made by docs/generate.py; for bash: . THIS_FILE
FUNCTION() {
    local -A values=(VALUES)
    local word waiting='' value_of='' index command=0
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        case $word in
            =) continue ;; # bash takes = and : for words of their own
            :) waiting=$value_of && continue ;;
        esac
        if [[ $waiting ]]; then
            value_of=$waiting waiting=''
        elif [[ $word == -- ]]; then
            command=$((index + 1)) && break
        elif [[ $word != -?* ]]; then
            command=$index && break
        elif [[ -v values["$word"] ]]; then
            waiting=$word
        fi
    done
    word=${COMP_WORDS[COMP_CWORD]}
    [[ $word != [=:] ]] || word=''
    if ((command)); then # its options are not ours
        [[ $(type -t _command_offset) != function ]] || _command_offset "$command"
    elif [[ $waiting && ${values[$waiting]} != FILE ]]; then
        compopt +o default 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -W "${values[$waiting]}" -- "$word")
    elif [[ ! $waiting && $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'NAMES' -- "$word")
    elif [[ ! $waiting && $word != */* ]]; then
        mapfile -t COMPREPLY < <(compgen -A command -- "$word")
    fi
}
complete -o default -F FUNCTION PROGRAMS
"""


def script(parser: Parser, *programs: str) -> str:
    """The completion of this program, also under its other names."""
    names = [(name, option) for option in parser.options for name in option.names]
    values = [f"[{name}]='{choices(option)}'" for name, option in names if option.value]
    fields = {
        "FUNCTION": "_" + parser.program.replace("-", "_"),
        "VALUES": "\n        " + "\n        ".join(values) + "\n    ",
        "NAMES": " ".join(name for name, _ in names),
        "PROGRAMS": " ".join(programs),
    }
    text = SCRIPT
    for field, content in fields.items():
        text = text.replace(field, content)
    return text


def choices(option: Option) -> str:
    """The words that the value can be."""
    if "|" in option.value:
        return option.value.replace("|", " ")
    return CHOICES_OF.get(option.value, NOTHING)
