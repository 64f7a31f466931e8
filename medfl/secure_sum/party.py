"""One site of a secure sum: it contributes a vector that nobody sees alone.

The server carries all messages and is not trusted: it may change, drop, repeat and make up what it
likes. A site therefore answers each phase once, only to what its peers signed under the same terms,
and gives nothing away for fewer than a threshold of them.

A site has one state for a round. It lives in `Party.state`, because each phase may run in a process
of its own, and has to be stored before the phase's answer is sent: a site that forgot its answer
could be asked for another. Terms say which round it is, and the caller makes sure that there is no
second state for the same round.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NoReturn, Self

from medfl.errors import PrivacyError
from medfl.secure_sum import agreement, masks, refusals
from medfl.secure_sum.dealing import deal, opened
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    Delivery,
    MaskedInput,
    SealedShares,
    Sign,
    Unmasking,
    commitment,
    digest_of,
    signed,
)
from medfl.secure_sum.state import Phase, Secret, SiteState
from medfl.secure_sum.terms import RoundTerms

_SEED_BYTES = 32


class Party:
    """A site in one round; the phases are called in the order in which they are defined here.

    A refusal leaves the state as it was.

    Args:
        terms: Of the round, as the site itself knows them.
        site: The site's name on the roster.
        sign: Signs with the site's event key; hexadecimal text.

    Raises:
        SecureSumRefused: If the roster does not have this site under this key (secure-sum-roster).
    """

    __slots__ = ("_sign", "_state")

    def __init__(self, terms: RoundTerms, *, site: str, sign: Sign) -> None:
        refusals.require_own_key(terms, site=site, sign=sign)
        self._sign = sign
        self._state = SiteState(terms=terms, site=site)

    @classmethod
    def restore(cls, state: bytes, *, sign: Sign) -> Self:
        """The site as it was when it gave its `state`.

        Raises:
            SecureSumRefused: If the state is damaged (secure-sum-state) or another site's
                (secure-sum-roster).
        """
        found = SiteState.from_bytes(state)
        party = cls(found.terms, site=found.site, sign=sign)
        party._state = found
        return party

    def state(self) -> bytes:
        """All that the next phase needs; secret, so store it for its owner only (mode 0600)."""
        return self._state.to_bytes()

    @property
    def terms(self) -> RoundTerms:
        """The terms of the round."""
        return self._state.terms

    @property
    def unheld(self) -> tuple[str, ...]:
        """Dealers whose shares could not be opened or do not fit what they signed."""
        return tuple(sorted(set(self._state.dealers) - set(self._state.seed_shares)))

    def advertise(self) -> Advert:
        """Make the keys and the seed of the round, and sign their public sides.

        Raises:
            SecureSumRefused: If it was done (secure-sum-again, secure-sum-order).
        """
        state = self._state
        refusals.require_phase(state.phase, Phase.FRESH)
        state.mask_key = agreement.new_private_key()
        state.sealing_key = agreement.new_private_key()
        state.seed = secrets.token_bytes(_SEED_BYTES)
        unsigned = Advert(
            site=state.site,
            terms=state.terms.digest,
            mask_key=agreement.public_half(state.mask_key),
            sealing_key=agreement.public_half(state.sealing_key),
            seed_commitment=commitment(state.seed, terms=state.terms.digest, site=state.site),
        )
        advert = signed(unsigned, self._sign)
        state.adverts = (advert,)
        state.phase = Phase.ADVERTISED
        return advert

    def share(self, adverts: Sequence[Advert]) -> SealedShares:
        """Deal shares of the mask key and of the seed to all who advertised.

        The hashes of all shares are signed beside them. They reveal nothing useful, because each
        share is a uniform element of a field above 2^256; see `messages.share_hash`.

        Args:
            adverts: As the server collected them, in any order, the own one among them.

        Raises:
            SecureSumRefused: If an advert is no site's of the roster, of other terms or unsigned
                (secure-sum-roster, -terms, -signature), if keys are unusable or occur twice
                (-keys), if the own advert is missing or there are two of a site (-advert), if they
                are fewer than the threshold (-threshold), or in another phase (-order, -again).
        """
        state = self._state
        refusals.require_phase(state.phase, Phase.ADVERTISED)
        refusals.require_sound(adverts, state.terms)
        refusals.require_one_each(adverts, own=state.adverts[0].digest, code="secure-sum-advert")
        refusals.require_enough(len(adverts), state.terms)
        refusals.require_own_keys(adverts)
        state.adverts = tuple(sorted(adverts, key=lambda advert: advert.site))
        answer = deal(state, state.adverts, sign=self._sign)
        state.dealing = answer.dealing.digest
        state.phase = Phase.SHARED
        return answer

    def mask(self, deliveries: Sequence[Delivery], vector: masks.Int64Array) -> MaskedInput:
        """Hide the site's vector behind the masks that it shares with the dealers.

        The state keeps nothing of the vector and loses the keys: store it together with the
        answer, which can be sent again but not made again. Two vectors behind the same masks would
        show their difference. A share that cannot be opened, or is not the one whose hash its
        dealer signed, is not held (see `unheld`), and the round goes on without it.

        Args:
            deliveries: Of all dealers, in any order, the own one among them.
            vector: The contribution, int64, shape (terms.length,), within +- terms.bound.

        Raises:
            ValueError: If the vector is none of these.
            SecureSumRefused: If a dealing is no site's of the roster, of other terms or unsigned
                (secure-sum-roster, -terms, -signature), if it was made for other adverts or holders
                (-transcript), if the own one is missing or there are two of a site (-dealing), if
                they are fewer than the threshold (-threshold), or in another phase (-order,
                -again).
        """
        state = self._state
        self.require_deliveries(deliveries)
        refusals.require_vector(vector, state.terms)
        dealings = [delivery.dealing for delivery in deliveries]
        for delivery in deliveries:
            with suppress(ValueError):
                dealer = delivery.dealing.site
                state.seed_shares[dealer], state.key_shares[dealer] = opened(state, delivery)
        state.dealers = tuple(sorted(dealing.site for dealing in dealings))
        state.dealings = digest_of("dealings", dealings, terms=state.terms)
        unsigned = MaskedInput(
            site=state.site,
            terms=state.terms.digest,
            dealers=state.dealings,
            vector=self._masked(vector),
        )
        state.forget_own_secrets()
        state.phase = Phase.MASKED
        return signed(unsigned, self._sign)

    def confirm(self, survivors: Collection[str]) -> Confirmation:
        """Sign the one set of sites whose sum this site will help to unmask.

        Args:
            survivors: Those whose masked input arrived, as the server says.

        Raises:
            SecureSumRefused: If this site is not among them or one is no dealer
                (secure-sum-survivors), if they are fewer than the threshold (-threshold), if
                another set was confirmed (-again), or in another phase (-order).
        """
        state = self._state
        refusals.require_phase(state.phase, Phase.MASKED, Phase.CONFIRMED)
        names = tuple(sorted(survivors))
        refusals.require_survivors(names, site=state.site, dealers=state.dealers)
        refusals.require_enough(len(names), state.terms)
        refusals.require_one_set(names, confirmed=state.survivors)
        unsigned = Confirmation(
            site=state.site, terms=state.terms.digest, dealers=state.dealings, survivors=names
        )
        state.survivors = names
        state.phase = Phase.CONFIRMED
        return signed(unsigned, self._sign)

    def unmask(self, confirmations: Sequence[Confirmation]) -> Unmasking:
        """Reveal the shares that unmask the sum over the confirmed survivors.

        For each survivor that is the share of its seed, for each dealer that fell out the share of
        its mask key. The same request gets the same answer. Afterwards call `forget`.

        Args:
            confirmations: Of a threshold of survivors, over the set that this site confirmed.

        Raises:
            SecureSumRefused: If a confirmation is no site's of the roster, of other terms or
                unsigned (secure-sum-roster, -terms, -signature), over other dealings
                (-transcript), over another set or from outside of it (-survivors), if they are
                fewer than the threshold (-threshold), if the other secret of a peer was revealed
                (-both-secrets), or in another phase (-order).
        """
        state = self._state
        refusals.require_phase(state.phase, Phase.CONFIRMED)
        self._require_confirmed(confirmations)
        survivors = set(state.survivors)
        asked = {
            dealer: Secret.SEED if dealer in survivors else Secret.KEY for dealer in state.dealers
        }
        refusals.require_one_secret(state.revealed, asked)
        unsigned = Unmasking(
            site=state.site,
            terms=state.terms.digest,
            dealers=state.dealings,
            seeds={name: share for name, share in state.seed_shares.items() if name in survivors},
            keys={name: share for name, share in state.key_shares.items() if name not in survivors},
        )
        state.revealed = asked
        return signed(unsigned, self._sign)

    def forget(self) -> None:
        """Give up the round, or end it: nothing is left that could answer again."""
        self._state = SiteState(terms=self.terms, site=self._state.site, phase=Phase.SPENT)

    def require_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """Refuse what `mask` would refuse, for callers that must pay before there is a vector.

        Raises:
            SecureSumRefused: As `mask` says.
        """
        state = self._state
        refusals.require_phase(state.phase, Phase.SHARED)
        dealings = [delivery.dealing for delivery in deliveries]
        refusals.require_sound(dealings, state.terms)
        seen = digest_of("adverts", state.adverts, terms=state.terms)
        holders = [advert.site for advert in state.adverts]
        for dealing in dealings:
            refusals.require_same(dealing.adverts, seen)
            refusals.require_holders(dealing, holders)
        refusals.require_one_each(dealings, own=state.dealing, code="secure-sum-dealing")
        refusals.require_enough(len(dealings), state.terms)

    def _masked(self, vector: masks.Int64Array) -> bytes:
        state = self._state
        words = masks.to_words(vector, bits=state.terms.modulus_bits)
        own = masks.self_mask_key(state.seed, dealers=state.dealings, site=state.site)
        masks.add_stream(words, own, sign=1)
        mask_keys = {advert.site: advert.mask_key for advert in state.adverts}
        for peer in state.dealers:
            if peer != state.site:
                masks.add_pair_mask(
                    words,
                    site=state.site,
                    peer=peer,
                    private=state.mask_key,
                    public=mask_keys[peer],
                    dealers=state.dealings,
                )
        return masks.pack(words, bits=state.terms.modulus_bits)

    def _require_confirmed(self, confirmations: Sequence[Confirmation]) -> None:
        state = self._state
        refusals.require_sound(confirmations, state.terms)
        for confirmation in confirmations:
            refusals.require_same(confirmation.dealers, state.dealings)
            refusals.require_agreement(confirmation, state.survivors)
        sites = {confirmation.site for confirmation in confirmations}
        refusals.require_enough(len(sites), state.terms)

    def __repr__(self) -> str:
        return f"Party({self._state!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("Expected a party to be stored by its state, found an attempt to copy.")
