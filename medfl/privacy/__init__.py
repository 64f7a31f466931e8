"""The mechanism, its engine, its accounting and the ledger; nothing here sees a file of images."""
