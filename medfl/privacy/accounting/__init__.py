"""What steps cost: charges, epsilon by several accountants, plans, and what they mean."""
