"""Audits: attacks on code that really runs, and what they prove about the promised privacy."""
