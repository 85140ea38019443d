"""How a network learns: the loop, optimizers, evaluation, results."""
