"""Training on the simulated array.

`site`       one product of a network on its machine, weights given anew each time
`session`    the products of a network, and the faults of a trial
`operators`  the products as torch operators with gradients
`modes`      a network's own calls taken to those operators
"""
