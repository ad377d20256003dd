"""Architecture search in one supernet, plain and under faults.

`searchers`           what every method has: propose, tell; random sampling
`controller`          LSTM controller with REINFORCE
`evolution`           regularised evolution
`multi`               several objectives, through Optuna
`products`            the products of a path on the simulated array
`paths`               fault backends for the changing paths of a supernet
`supernet_training`   weight steps and rewards
`search`              settings, epochs, the share of the data for each
`run`                 checkpoints, resume, what a finished search leaves
`evaluation`          a trained network over many fault maps
"""
