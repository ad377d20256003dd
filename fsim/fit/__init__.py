"""From raw rates and measured failures to FIT by component, with intervals; `fsim fit`."""
