"""How a site deals shares of its two secrets, and opens those that others dealt to it."""

from __future__ import annotations

from collections.abc import Sequence

from medfl.secure_sum import sealing, shamir
from medfl.secure_sum.messages import (
    Advert,
    Dealing,
    Delivery,
    SealedShares,
    Sign,
    digest_of,
    share_hash,
    signed,
)
from medfl.secure_sum.state import Secret, SiteState


def deal(state: SiteState, adverts: Sequence[Advert], *, sign: Sign) -> SealedShares:
    """Share the site's seed and mask key among all who advertised.

    Args:
        state: Of the dealer.
        adverts: Of all holders, the dealer's own among them.
        sign: The dealer's.
    """
    terms = state.terms
    seen = digest_of("adverts", adverts, terms=terms)
    points = {advert.site: terms.roster.point_of(advert.site) for advert in adverts}
    shares = {
        Secret.SEED: _shares(state.seed, threshold=terms.threshold, points=points),
        Secret.KEY: _shares(state.mask_key, threshold=terms.threshold, points=points),
    }
    hashes = {
        kind: {
            holder: share_hash(share, adverts=seen, dealer=state.site, holder=holder, kind=kind)
            for holder, share in shares[kind].items()
        }
        for kind in Secret
    }
    sealed = {
        advert.site: sealing.seal(
            (shares[Secret.SEED][advert.site], shares[Secret.KEY][advert.site]),
            private=state.sealing_key,
            public=advert.sealing_key,
            purpose=sealing.purpose_of(adverts=seen, dealer=state.site, holder=advert.site),
        )
        for advert in adverts
    }
    unsigned = Dealing(
        site=state.site,
        terms=terms.digest,
        adverts=seen,
        seed_hashes=hashes[Secret.SEED],
        key_hashes=hashes[Secret.KEY],
    )
    return SealedShares(dealing=signed(unsigned, sign), sealed=sealed)


def opened(state: SiteState, delivery: Delivery) -> tuple[bytes, bytes]:
    """The shares of seed and mask key that a dealer sealed for this site.

    Args:
        state: Of the holder, with the adverts of all dealers.
        delivery: Of one of them.

    Raises:
        ValueError: If they cannot be opened, or are not those whose hashes the dealer signed.
    """
    dealing = delivery.dealing
    names = {"adverts": dealing.adverts, "dealer": dealing.site, "holder": state.site}
    sealing_keys = {advert.site: advert.sealing_key for advert in state.adverts}
    seed, key = sealing.unseal(
        delivery.sealed,
        private=state.sealing_key,
        public=sealing_keys[dealing.site],
        purpose=sealing.purpose_of(**names),
    )
    if share_hash(seed, kind=Secret.SEED, **names) != dealing.seed_hashes[state.site]:
        raise ValueError("Expected the share of the seed that was signed, found another.")
    if share_hash(key, kind=Secret.KEY, **names) != dealing.key_hashes[state.site]:
        raise ValueError("Expected the share of the mask key that was signed, found another.")
    return seed, key


def _shares(secret: bytes, *, threshold: int, points: dict[str, int]) -> dict[str, bytes]:
    found = shamir.split(int.from_bytes(secret), threshold=threshold, points=points.values())
    return {site: found[point].to_bytes(shamir.SHARE_BYTES) for site, point in points.items()}
