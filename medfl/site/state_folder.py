"""What lies in a site's state folder, by name; without torch, for what only starts and watches."""

LEDGER = "ledger"
"""Folder of the privacy ledger."""

OUTBOX = "outbox"
"""Folder of updates that were paid for."""

CACHE = "cache"
"""Folder of prepared images."""

SUMS = "secure_sums"
"""Folder of what is kept of secure sums, beside ledger and outbox."""

OPEN_RUNS = "open-runs"
"""Folder of which runs the site is in now."""

LOGS = "logs"
"""Folder of what a site's processes say."""

SITE_KEY = "site.key"
"""Secret of pseudonyms and of the held-out split."""
