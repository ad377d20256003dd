"""The sequencer of the systolic array as registers: `cycle.py` says what they do."""
