"""Fault-tolerant training: one loss over a clean and a faulty pass.

`backends`    the faulty pass: on the simulated array, or by statistical models
`statistics`  batch-norm statistics, shared or apart
`loop`        steps, epochs, evaluation
`folder`      checkpoints of one configuration, resume
`run`         training in a folder: history, picture, weights
"""
