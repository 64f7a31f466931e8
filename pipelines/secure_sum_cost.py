"""What a secure sum costs at one site and at the server, beside the same round without it.

    python pipelines/secure_sum_cost.py SITES MILLIONS

The round without it: each site sends float32 weights, the server adds them up. All sites run in
this process, one after the other; the cost of a site is that of one of them, the median of a few.
`benchmark.py` runs this in a process of its own. The last line of output is JSON.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfl.secure_sum.collector import Collector
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import Roster, RoundTerms, minimum_threshold

# Of hospitals with a hundred patients each and noise beside them; see `largest_total`.
BOUND = 2**29
BITS = 32


class Stopwatch:
    """Seconds by what was done."""

    def __init__(self) -> None:
        self.of_site: dict[str, list[float]] = {}
        self.of_server = 0.0

    @contextmanager
    def site(self, name: str) -> Iterator[None]:
        """Time spent at a site."""
        begin = time.perf_counter()
        yield
        self.of_site.setdefault(name, []).append(time.perf_counter() - begin)

    @contextmanager
    def server(self) -> Iterator[None]:
        """Time spent at the server."""
        begin = time.perf_counter()
        yield
        self.of_server += time.perf_counter() - begin


def main() -> None:
    """Measure what the arguments say."""
    sites, length = int(sys.argv[1]), round(float(sys.argv[2]) * 1e6)
    result = secure(sites, length) | {"plain": plain(sites, length)}
    result |= {"sites": sites, "integers": length}
    sys.stdout.write(json.dumps(result) + "\n")


def secure(sites: int, length: int) -> dict[str, Any]:
    """One round of a secure sum in which one site falls out after it has dealt its shares."""
    keys = {f"site-{number:03d}": Ed25519PrivateKey.generate() for number in range(sites)}
    roster = Roster.of(
        {name: key.public_key().public_bytes_raw().hex() for name, key in keys.items()}
    )
    terms = RoundTerms(
        run="cost",
        round=1,
        roster=roster,
        model_digest="0" * 64,
        length=length,
        modulus_bits=BITS,
        bound=BOUND,
        scale="1",
        threshold=minimum_threshold(sites=sites, colluding_sites=0),
        colluding_sites=0,
    )
    parties = {name: Party(terms, site=name, sign=_signer(key)) for name, key in keys.items()}
    collector, watch = Collector(terms), Stopwatch()
    vector = np.random.default_rng(1).integers(-1000, 1000, length, dtype=np.int64)
    sent: dict[str, int] = dict.fromkeys(keys, 0)

    def told(name: str, content: object) -> None:
        sent[name] += len(json.dumps(content))

    for name, party in parties.items():
        with watch.site(name):
            advert = party.advertise()
        told(name, advert.to_dict())
        with watch.server():
            collector.take_advert(advert)
    adverts = collector.adverts()
    for name, party in parties.items():
        with watch.site(name):
            shares = party.share(adverts)
        told(name, shares.to_dict())
        with watch.server():
            collector.take_shares(shares)
    gone = min(keys) if sites > 2 else ""
    for name, party in parties.items():
        if name == gone:
            continue
        with watch.server():
            deliveries = collector.deliveries_for(name)
        before = party.state()
        with watch.site(name):
            masked = party.mask(deliveries, vector)
        told(name, masked.to_dict())
        sent[name] += len(masked.vector)
        with watch.server():
            collector.take_masked(masked)
    again = Party.restore(before, sign=_signer(keys[name]))
    site_memory = peak_of(lambda: again.mask(deliveries, vector))
    survivors = collector.survivors()
    for name in survivors:
        with watch.site(name):
            confirmation = parties[name].confirm(survivors)
        told(name, confirmation.to_dict())
        with watch.server():
            collector.take_confirmation(confirmation)
    confirmations = collector.confirmations()
    for name in survivors:
        with watch.site(name):
            unmasking = parties[name].unmask(confirmations)
        told(name, unmasking.to_dict())
        with watch.server():
            collector.take_unmasking(unmasking)
    with watch.server():
        total, _ = collector.total()
    if not np.array_equal(total, vector * len(survivors)):
        raise AssertionError("the sum is not that of the vectors")
    return {
        "site_seconds": median(sum(watch.of_site[name]) for name in survivors),
        "server_seconds": watch.of_server,
        "site_bytes": round(median(sent[name] for name in survivors)),
        "site_memory": site_memory,
    }


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that an action takes at most on top of what is there; NumPy tells `tracemalloc`."""
    tracemalloc.start()
    action()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def plain(sites: int, length: int) -> dict[str, Any]:
    """The same round where each site sends its weights in the open."""
    weights = np.random.default_rng(1).normal(size=length).astype(np.float32)
    watch = Stopwatch()
    total = np.zeros(length, dtype=np.float64)
    for number in range(sites):
        with watch.site(str(number)):
            content = weights.tobytes()
        with watch.server():
            total += np.frombuffer(content, dtype=np.float32)
    return {
        "site_seconds": median(sum(each) for each in watch.of_site.values()),
        "server_seconds": watch.of_server,
        "site_bytes": len(weights.tobytes()),
    }


def _signer(key: Ed25519PrivateKey) -> Callable[[bytes], str]:
    return lambda content: key.sign(content).hex()


if __name__ == "__main__":
    main()
