"""`systolic`: the default machine, any rows x cols, weight, output and input stationary."""
