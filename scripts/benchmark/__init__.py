"""What the parts of scripts/bench that measure a running node have in common."""
