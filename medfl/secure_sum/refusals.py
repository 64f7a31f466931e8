"""What a site refuses to answer: each rule by itself, with the code that may leave the site."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from medfl.errors import SecureSumRefused
from medfl.secure_sum.agreement import is_usable
from medfl.secure_sum.binding import encode
from medfl.secure_sum.masks import Int64Array
from medfl.secure_sum.messages import Advert, Confirmation, Dealing, Sign, Signed, fault
from medfl.secure_sum.state import Phase, Secret
from medfl.secure_sum.terms import RoundTerms
from medfl.signatures import is_signed


def require(holds: bool, code: str, rule: str) -> None:
    """Refuse unless a rule holds.

    Raises:
        SecureSumRefused: With this code.
    """
    if not holds:
        raise SecureSumRefused(f"Expected {rule}; refused to answer.", code=code)


def require_own_key(terms: RoundTerms, *, site: str, sign: Sign) -> None:
    """A site takes part only under the key that the roster has for it."""
    probe = encode("own key", terms.digest, site)
    key = terms.roster.key_of(site)
    require(
        bool(key) and is_signed(probe, signature=sign(probe), event_key=key),
        "secure-sum-roster",
        "this site under its own key on the roster",
    )


def require_phase(found: Phase, *allowed: Phase) -> None:
    """Each phase follows the one before, once."""
    order = list(Phase)
    done = found is not Phase.SPENT and order.index(found) > max(map(order.index, allowed))
    code = "secure-sum-again" if done else "secure-sum-order"
    require(found in allowed, code, f"a site that is {allowed[0].value}, found {found.value}")


def require_sound(messages: Sequence[Signed], terms: RoundTerms) -> None:
    """Every message is one that a site of the roster signed under these terms."""
    for message in messages:
        code = fault(message, terms)
        require(not code, code, "messages that sites of the roster signed under these terms")


def require_enough(count: int, terms: RoundTerms) -> None:
    """Nothing is done for fewer sites than the threshold."""
    require(count >= terms.threshold, "secure-sum-threshold", f"{terms.threshold} sites or more")


def require_one_each(messages: Sequence[Signed], *, own: str, code: str) -> None:
    """One message of each site, and the own one as it was sent.

    Args:
        messages: Of all sites.
        own: Digest of the own one.
        code: Of the refusal.
    """
    sites = {message.site for message in messages}
    digests = {message.digest for message in messages}
    require(
        len(sites) == len(messages) and own in digests,
        code,
        "one message of each site and the own one unchanged",
    )


def require_own_keys(adverts: Sequence[Advert]) -> None:
    """Every key is usable, and its site's alone."""
    keys = [key for advert in adverts for key in advert.keys]
    require(
        len(set(keys)) == len(keys) and all(map(is_usable, keys)),
        "secure-sum-keys",
        "usable keys, each of one site and for one purpose",
    )


def require_same(found: str, expected: str) -> None:
    """A peer was shown the same messages as this site, by their digests."""
    require(found == expected, "secure-sum-transcript", "peers that were shown the same messages")


def require_holders(dealing: Dealing, holders: Collection[str]) -> None:
    """Dealer and holders are those who advertised."""
    require(
        dealing.site in holders
        and dealing.seed_hashes.keys() == dealing.key_hashes.keys() == set(holders),
        "secure-sum-transcript",
        "dealings among exactly those who advertised",
    )


def require_vector(vector: Int64Array, terms: RoundTerms) -> None:
    """A contribution of the agreed kind.

    Raises:
        ValueError: If it is another.
    """
    if vector.dtype != np.int64 or vector.shape != (terms.length,):
        raise ValueError(
            f"Expected int64 of shape ({terms.length},), found {vector.dtype} of {vector.shape}."
        )
    if vector.min() < -terms.bound or vector.max() > terms.bound:
        raise ValueError(f"Expected integers within +-{terms.bound}, found larger ones.")


def require_survivors(names: Sequence[str], *, site: str, dealers: Collection[str]) -> None:
    """Survivors are dealers, each once, and this site is one of them."""
    known = {site} <= set(names) <= set(dealers)
    require(
        len(set(names)) == len(names) and known,
        "secure-sum-survivors",
        "this site among survivors that are all dealers",
    )


def require_one_set(names: tuple[str, ...], *, confirmed: tuple[str, ...]) -> None:
    """A site confirms one set of survivors in a round.

    Args:
        names: The set that it is asked to confirm.
        confirmed: The one that it has confirmed; empty for none.
    """
    require(confirmed in ((), names), "secure-sum-again", "the survivors that were confirmed")


def require_agreement(confirmation: Confirmation, survivors: tuple[str, ...]) -> None:
    """A survivor confirmed exactly the set that this site has confirmed."""
    require(
        confirmation.survivors == survivors and confirmation.site in survivors,
        "secure-sum-survivors",
        "confirmations by survivors of the very set that this site confirmed",
    )


def require_one_secret(revealed: Mapping[str, Secret], asked: Mapping[str, Secret]) -> None:
    """Of no peer both secrets: one opens its self mask, the other all that it shares with others.

    With one set of survivors it cannot happen; this is the last line behind that rule.
    """
    require(
        all(revealed.get(peer, secret) is secret for peer, secret in asked.items()),
        "secure-sum-both-secrets",
        "to reveal one secret of a peer",
    )
