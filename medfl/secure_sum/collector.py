"""The server of a secure sum: it carries the sites' messages and learns their sum.

A message that breaks a rule is refused with a code, and the round goes on without its site; with
fewer sites than the threshold it ends without a sum. Masked inputs are added up as they arrive and
are not kept. The collector lives in one process: a round whose server dies is void.
"""

from __future__ import annotations

from collections.abc import Collection

from medfl.errors import SecureSumError
from medfl.secure_sum import masks, recovery
from medfl.secure_sum.agreement import is_usable
from medfl.secure_sum.binding import DIGEST_BYTES
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    Dealing,
    Delivery,
    MaskedInput,
    SealedShares,
    Signed,
    Unmasking,
    digest_of,
    fault,
)
from medfl.secure_sum.terms import RoundTerms

_PHASES = ("adverts", "shares", "masked inputs", "confirmations", "unmaskings", "done")


class Collector:
    """The server's side of one round.

    Each phase takes messages until the answer to them is asked for: `adverts` ends the taking of
    adverts, and so on. A message that comes later is refused (secure-sum-order), a second one of
    a site as well (secure-sum-again); what was taken stays.

    Args:
        terms: Of the round.
    """

    def __init__(self, terms: RoundTerms) -> None:
        self.terms = terms
        self._phase = _PHASES[0]
        self._adverts: dict[str, Advert] = {}
        self._seen = ""
        self._shares: dict[str, SealedShares] = {}
        self._dealings = ""
        self._sum = masks.zero_words(terms.length, bits=terms.modulus_bits)
        self._masked: set[str] = set()
        self._confirmations: dict[str, Confirmation] = {}
        self._unmaskings: dict[str, Unmasking] = {}

    def take_advert(self, advert: Advert) -> None:
        """Take a site's public keys.

        Raises:
            SecureSumError: If it is refused (secure-sum-roster, -terms, -signature, -order, -again,
                -keys).
        """
        self._require_sound(advert, phase="adverts", taken=self._adverts)
        taken = {key for other in self._adverts.values() for key in other.keys}
        usable = len(set(advert.keys)) == len(advert.keys) and all(map(is_usable, advert.keys))
        _expect(
            usable and not taken & set(advert.keys), "secure-sum-keys", "usable keys of its own"
        )
        self._adverts[advert.site] = advert

    def adverts(self) -> list[Advert]:
        """What every site that advertised gets to see.

        Raises:
            SecureSumError: If they are too few (secure-sum-quorum).
        """
        self._close("adverts", len(self._adverts))
        self._seen = self._seen or digest_of("adverts", self._adverts.values(), terms=self.terms)
        return [self._adverts[site] for site in sorted(self._adverts)]

    def take_shares(self, shares: SealedShares) -> None:
        """Take the shares that a site dealt.

        Raises:
            SecureSumError: If they are refused (secure-sum-roster, -terms, -signature, -order,
                -again, -transcript, -dealing).
        """
        dealing = shares.dealing
        self._require_sound(dealing, phase="shares", taken=self._shares)
        _expect(
            dealing.site in self._adverts and dealing.adverts == self._seen,
            "secure-sum-transcript",
            "a dealer that was shown these adverts",
        )
        hashes = [*dealing.seed_hashes.values(), *dealing.key_hashes.values()]
        _expect(
            dealing.seed_hashes.keys() == dealing.key_hashes.keys() == self._adverts.keys()
            and shares.sealed.keys() == self._adverts.keys()
            and all(len(found) == DIGEST_BYTES for found in hashes),
            "secure-sum-dealing",
            "shares for exactly those who advertised",
        )
        self._shares[dealing.site] = shares

    def deliveries_for(self, site: str) -> list[Delivery]:
        """What a dealer gets: all dealings, and the shares that are sealed for it.

        Raises:
            SecureSumError: If the dealers are too few (secure-sum-quorum), or if this site is none
                (secure-sum-dropped).
        """
        self._close("shares", len(self._shares))
        self._require_in(site, self._shares)
        self._dealings = self._dealings or digest_of("dealings", self._dealt(), terms=self.terms)
        return [
            Delivery(dealing=shares.dealing, sealed=shares.sealed[site])
            for _, shares in sorted(self._shares.items())
        ]

    def take_masked(self, masked: MaskedInput) -> None:
        """Add a site's masked vector to the sum.

        Raises:
            SecureSumError: If it is refused (secure-sum-roster, -terms, -signature, -order, -again,
                -dropped, -transcript, -length).
        """
        self._require_sound(masked, phase="masked inputs", taken=self._masked)
        self._require_in(masked.site, self._shares)
        self._require_dealings(masked.dealers)
        size = self.terms.length * self.terms.modulus_bits // 8
        _expect(
            len(masked.vector) == size,
            "secure-sum-length",
            f"a vector of {size} bytes, found {len(masked.vector)}",
        )
        masks.add_packed(self._sum, masked.vector, bits=self.terms.modulus_bits)
        self._masked.add(masked.site)

    def survivors(self) -> tuple[str, ...]:
        """The sites whose masked vector is in the sum, in ascending order.

        Raises:
            SecureSumError: If they are too few (secure-sum-quorum).
        """
        self._close("masked inputs", len(self._masked))
        return tuple(sorted(self._masked))

    def take_confirmation(self, confirmation: Confirmation) -> None:
        """Take a survivor's word that it knows who survived.

        Raises:
            SecureSumError: If it is refused (secure-sum-roster, -terms, -signature, -order, -again,
                -dropped, -transcript, -survivors).
        """
        self._require_sound(confirmation, phase="confirmations", taken=self._confirmations)
        self._require_in(confirmation.site, self._masked)
        self._require_dealings(confirmation.dealers)
        _expect(
            confirmation.survivors == tuple(sorted(self._masked)),
            "secure-sum-survivors",
            "a confirmation of the survivors of this round",
        )
        self._confirmations[confirmation.site] = confirmation

    def confirmations(self) -> list[Confirmation]:
        """What every survivor gets to see.

        Raises:
            SecureSumError: If they are too few (secure-sum-quorum).
        """
        self._close("confirmations", len(self._confirmations))
        return [self._confirmations[site] for site in sorted(self._confirmations)]

    def take_unmasking(self, unmasking: Unmasking) -> None:
        """Take the shares that a survivor reveals.

        Raises:
            SecureSumError: If they are refused (secure-sum-roster, -terms, -signature, -order,
                -again, -dropped, -transcript, -share).
        """
        self._require_sound(unmasking, phase="unmaskings", taken=self._unmaskings)
        self._require_in(unmasking.site, self._masked)
        self._require_dealings(unmasking.dealers)
        _expect(
            unmasking.seeds.keys() <= self._masked
            and unmasking.keys.keys() <= self._shares.keys() - self._masked
            and recovery.fits(unmasking, {dealing.site: dealing for dealing in self._dealt()}),
            "secure-sum-share",
            "shares that fit the dealers' hashes, of the one secret that is needed of each",
        )
        self._unmaskings[unmasking.site] = unmasking

    def total(self) -> tuple[masks.Int64Array, tuple[str, ...]]:
        """The sum over the survivors, once.

        Returns:
            The sum, int64, shape (terms.length,), and the survivors in ascending order.

        Raises:
            SecureSumError: If too few sites unmask or hold a dealer's shares (secure-sum-quorum),
                if a dealer's shares give no secret that it committed to (secure-sum-dealing), if
                the sum is out of bounds (secure-sum-range), or if it was given (secure-sum-order).
        """
        _expect(self._phase == "unmaskings", "secure-sum-order", "confirmed survivors")
        _expect(
            len(self._unmaskings) >= self.terms.threshold,
            "secure-sum-quorum",
            f"{self.terms.threshold} sites that unmask, found {len(self._unmaskings)}",
        )
        survivors = tuple(sorted(self._masked))
        secrets = recovery.recover(
            self.terms,
            adverts=self._adverts,
            survivors=survivors,
            dropped=sorted(self._shares.keys() - self._masked),
            unmaskings=list(self._unmaskings.values()),
        )
        self._phase = "done"
        recovery.remove_masks(
            self._sum, secrets, adverts=self._adverts, survivors=survivors, dealers=self._dealings
        )
        total = masks.to_integers(self._sum, bits=self.terms.modulus_bits)
        bound = self.terms.bound
        _expect(
            -bound <= int(total.min()) and int(total.max()) <= bound,
            "secure-sum-range",
            f"a sum within +-{bound}, found more: a site sent something else than its vector",
        )
        return total, survivors

    def _dealt(self) -> list[Dealing]:
        return [shares.dealing for shares in self._shares.values()]

    def _close(self, phase: str, count: int) -> None:
        """End a phase that enough sites have reached; nothing if it is over."""
        reached, wanted = _PHASES.index(self._phase), _PHASES.index(phase)
        _expect(reached >= wanted, "secure-sum-order", f"{phase}, found {self._phase}")
        _expect(
            count >= self.terms.threshold,
            "secure-sum-quorum",
            f"{phase} of {self.terms.threshold} sites or more, found {count}",
        )
        self._phase = _PHASES[max(reached, wanted + 1)]

    def _require_sound(self, message: Signed, *, phase: str, taken: Collection[str]) -> None:
        code = fault(message, self.terms)
        _expect(not code, code, "a message that a site of the roster signed under these terms")
        _expect(self._phase == phase, "secure-sum-order", f"{self._phase}, found {phase}")
        _expect(message.site not in taken, "secure-sum-again", "one message of a site in a phase")

    def _require_in(self, site: str, sites: Collection[str]) -> None:
        _expect(site in sites, "secure-sum-dropped", "a site that has not fallen out")

    def _require_dealings(self, found: str) -> None:
        _expect(
            found == self._dealings, "secure-sum-transcript", "a site that was shown these dealings"
        )


def _expect(holds: bool, code: str, rule: str) -> None:
    if not holds:
        raise SecureSumError(f"Expected {rule}.", code=code)
