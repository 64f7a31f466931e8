"""How the server rebuilds the secrets that its sum needs, and takes the masks off with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from medfl.errors import SecureSumError
from medfl.secure_sum import masks, shamir
from medfl.secure_sum.agreement import KEY_BYTES, public_half
from medfl.secure_sum.messages import Advert, Dealing, Unmasking, commitment, share_hash
from medfl.secure_sum.terms import RoundTerms


@dataclass(frozen=True, kw_only=True, repr=False)
class Secrets:
    """What opens one sum, and no site's vector: of no site both secrets.

    Attributes:
        seeds: Self-mask seeds of the survivors.
        keys: Mask keys of the dealers that fell out.
    """

    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]


def fits(unmasking: Unmasking, dealings: Mapping[str, Dealing]) -> bool:
    """Whether every revealed share is the one whose hash its dealer signed.

    Args:
        unmasking: Of one site; its dealers are all known.
        dealings: By dealer.
    """
    holder = unmasking.site
    expected = [
        (share, dealings[dealer].seed_hashes[holder], dealer, "seed")
        for dealer, share in unmasking.seeds.items()
    ] + [
        (share, dealings[dealer].key_hashes[holder], dealer, "key")
        for dealer, share in unmasking.keys.items()
    ]
    return all(
        len(share) == shamir.SHARE_BYTES
        and share_hash(
            share,
            adverts=dealings[dealer].adverts,
            dealer=dealer,
            holder=holder,
            kind=kind,
        )
        == known
        for share, known, dealer, kind in expected
    )


def recover(
    terms: RoundTerms,
    *,
    adverts: Mapping[str, Advert],
    survivors: Collection[str],
    dropped: Collection[str],
    unmaskings: Sequence[Unmasking],
) -> Secrets:
    """Rebuild the survivors' seeds and the mask keys of those who fell out.

    Args:
        terms: Of the round.
        adverts: By site.
        survivors: Sites whose vector is in the sum.
        dropped: Dealers whose vector is not.
        unmaskings: Of at least a threshold of sites; their shares fit the hashes.

    Raises:
        SecureSumError: If the shares of a secret are too few (secure-sum-quorum), or give another
            one than its dealer committed to (secure-sum-dealing).
    """
    seeds, keys = {}, {}
    for site in survivors:
        held = {found.site: found.seeds[site] for found in unmaskings if site in found.seeds}
        seeds[site] = _rebuilt(terms, site, held)
        found = commitment(seeds[site], terms=terms.digest, site=site)
        _require_committed(site, found, adverts[site].seed_commitment)
    for site in dropped:
        held = {found.site: found.keys[site] for found in unmaskings if site in found.keys}
        keys[site] = _rebuilt(terms, site, held)
        _require_committed(site, public_half(keys[site]), adverts[site].mask_key)
    return Secrets(seeds=seeds, keys=keys)


def remove_masks(
    words: masks.Words,
    secrets: Secrets,
    *,
    adverts: Mapping[str, Advert],
    survivors: Sequence[str],
    dealers: str,
) -> None:
    """Take all masks off a sum, in place; those between two survivors have cancelled.

    Args:
        words: Residues of the sum of masked vectors.
        secrets: From `recover`.
        adverts: By site.
        survivors: Sites whose vector is in the sum.
        dealers: Digest of the dealings.
    """
    for site in survivors:
        key = masks.self_mask_key(secrets.seeds[site], dealers=dealers, site=site)
        masks.add_stream(words, key, sign=-1)
        for peer, private in secrets.keys.items():
            masks.remove_pair_mask(
                words,
                site=site,
                peer=peer,
                private=private,
                public=adverts[site].mask_key,
                dealers=dealers,
            )


def _rebuilt(terms: RoundTerms, dealer: str, held: Mapping[str, bytes]) -> bytes:
    if len(held) < terms.threshold:
        raise SecureSumError(
            f"Expected {terms.threshold} shares that {dealer} dealt, found {len(held)}.",
            code="secure-sum-quorum",
        )
    shares = {terms.roster.point_of(holder): int.from_bytes(held[holder]) for holder in held}
    secret = shamir.reconstruct(shares, threshold=terms.threshold)
    # A dealer's polynomial may have any constant term: one of 33 bytes is no secret of ours.
    return secret.to_bytes(shamir.SHARE_BYTES)[-KEY_BYTES:]


def _require_committed(dealer: str, found: bytes, committed: bytes) -> None:
    if found != committed:
        raise SecureSumError(
            f"Expected the secret that {dealer} committed to, found another in the shares that it "
            "dealt.",
            code="secure-sum-dealing",
        )
