"""The simulator: from a network and an accelerator to faults and their outcomes."""
