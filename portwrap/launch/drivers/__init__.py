"""The network drivers: what provides outbound connections that are not native.

A new one is a class in a file of its own and a row in NETWORK_DRIVERS: the choices of --network,
--check, and the causes and remedies of its failures follow from that.
"""

from __future__ import annotations

from ...diagnostics.errors import Failure, PortwrapError
from ..hosts import need_ipv6, needed_addresses
from .driver import DIRECT as DIRECT
from .driver import WITHOUT, NetworkDriver, why_no_tun
from .pasta import Pasta
from .routes import leads_on_by_ipv6, read_routes
from .slirp4netns import Slirp4netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..hosts import Known
    from .routes import Route

NETWORK_DRIVERS: Sequence[type[NetworkDriver]] = (Slirp4netns, Pasta)
"""In the order in which "auto" tries them."""
AUTO, NONE = "auto", "none"
CHOICES = (AUTO, *(driver.name for driver in NETWORK_DRIVERS), DIRECT, NONE)
"""The values of --network."""


def usable(environ: Mapping[str, str]) -> list[NetworkDriver]:
    """The network drivers that work for this account on this node, as far as can be seen."""
    routes = read_routes()
    found: list[NetworkDriver] = []
    for driver in NETWORK_DRIVERS if why_no_tun() is None else ():
        try:
            found.append(driver.find(environ, routes))
        except PortwrapError:
            pass
    return found


def choose(
    network: str,
    environ: Mapping[str, str],
    needed: Sequence[str] = (),
    may_be_direct: bool = True,
    needs_ipv6: bool = False,
) -> NetworkDriver | None:
    """The network driver to use; None for "none". `needed` are addresses that the session has to
    reach, the hub's for one. Raises PortwrapError where it is not usable."""
    if network == NONE:
        return None
    routes = read_routes()
    if network == DIRECT:
        return _direct(routes, needed)
    no_tun = why_no_tun() if network == AUTO and may_be_direct else None
    if no_tun is not None:
        return _direct(routes, needed, no_tun)
    wants_ipv6 = needs_ipv6 or (not routes and leads_on_by_ipv6())
    # Sorting keeps the order of those that are equal.
    in_order = sorted(NETWORK_DRIVERS, key=lambda driver: wants_ipv6 and not driver.has_ipv6)
    found: list[NetworkDriver] = []
    refused = []
    for kind in in_order:
        if network in (AUTO, kind.name):
            try:
                driver = kind.find(environ, routes, needed)
            except PortwrapError as error:
                refused.append(error)
                continue
            if not driver.warning:
                return driver
            found.append(driver)
    if found:
        return found[0]
    refusal = _refusal(refused)
    if network == AUTO and may_be_direct:
        return _direct(routes, needed, refusal)
    raise refusal


def _direct(
    routes: Sequence[Route], needed: Sequence[str], instead_of: PortwrapError | None = None
) -> NetworkDriver:
    from .direct import Direct  # few sessions need it

    return Direct(routes, needed, instead_of)


def choose_for(
    network: str, outward: str, hosts: Sequence[str], environ: Mapping[str, str], known: Known
) -> NetworkDriver | None:
    """The same for a session that has to reach these hosts, with their `known` addresses, and has
    this setting of --outward. Raises PortwrapError."""
    return choose(
        network,
        environ,
        needed_addresses(hosts, environ, known),
        may_be_direct=outward != "helper",
        needs_ipv6=need_ipv6(hosts, known),
    )


def _refusal(refused: Sequence[PortwrapError]) -> PortwrapError:
    """Why none of them is usable, in one sentence."""
    others = [error for error in refused if error.failure != Failure.DRIVER_NOT_FOUND]
    if not others and len(refused) > 1:
        names = " nor ".join(error.subject for error in refused)
        return _without(f"neither {names} found", Failure.DRIVER_NOT_FOUND)
    first = (others or refused)[0]
    reasons = ", ".join(error.message for error in refused)
    return _without(reasons, first.failure, first.subject)


def _without(reasons: str, failure: str, subject: str = "") -> PortwrapError:
    return PortwrapError(reasons + WITHOUT, failure, subject=subject)
