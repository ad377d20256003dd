"""The networks of the paper's tables by name, what they cost, and where MiBB faults enter."""
