"""Simulated networks for `bench tamper`: records of checks with the truth beside them, and attacks on such records."""
