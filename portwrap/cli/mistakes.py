"""What somebody may have meant who has made a mistake."""

from __future__ import annotations

import ipaddress
from difflib import get_close_matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def nearest(text: str, known: Iterable[str], same: str = "") -> str:
    """The known word that this one was meant to be; "" where none is near. `same` is what all of
    them begin with."""
    rest = {word[len(same) :].lower(): word for word in known}
    wrong = text[len(same) :].lower()
    longer = [word for word in rest if wrong and word.startswith(wrong)]
    near = longer if len(longer) == 1 else get_close_matches(wrong, list(rest), 1)
    return rest[near[0]] if near else ""


def unknown_variables(unknown: Sequence[str], known: Sequence[str], same: str) -> str:
    """The sentence about variables that look like settings of ours and are none."""
    names = ", ".join(map(repr, unknown)).replace("'", "")
    near = filter(None, (nearest(name, known, same) for name in unknown))
    meant = " or ".join(dict.fromkeys(near))
    remedy = f"did you mean {meant}?" if meant else f"known variables: {', '.join(known)}"
    kind = "variables" if len(unknown) > 1 else "variable"
    return f"unknown {kind} {names} ignored; {remedy}"


def nearest_networks(text: str, name: str) -> str:
    """A remedy for a list of networks that is none."""
    networks = []
    for item in text.split(","):
        try:
            networks.append(str(ipaddress.ip_network(item.strip(), strict=False)))
        except ValueError:
            named = item.replace("-", "").replace(".", "").isalnum() and not item[:1].isdigit()
            return f"Give numeric addresses: getent ahosts {item}" if named else ""
    return f"Did you mean {assignment(name, ','.join(networks))}?"


def assignment(name: str, value: str) -> str:
    """The option or the variable with this value, as a shell takes it."""
    return f"{name} {value}" if name.startswith("-") else f"{name}={value}"
