"""Time limits of tests: a test that waits longer fails. No result depends on them.

`EIR_TEST_PATIENCE` multiplies them all, for hosts where other programs want every processor.
"""

import os

FACTOR = float(os.environ.get("EIR_TEST_PATIENCE", "1"))
PATIENCE_S = 180 * FACTOR
"""One condition, answer or command of ours."""
PROGRAM_S = 600 * FACTOR
"""Run of another program, which may do much."""
TEST_S = 900 * FACTOR
"""A whole test."""
