"""The method, and everything that travels with the weights: what is in here imports nothing else of the package."""
