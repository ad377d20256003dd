"""Other fault injectors, measured beside fsim in an environment of their own."""
