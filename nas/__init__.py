"""Networks, data sets and (from the fault-tolerant training on) architecture search."""
