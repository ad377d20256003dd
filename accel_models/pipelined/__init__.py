"""`pipelined-systolic`: four register stages a PE, output and weight stationary."""
