"""What an algorithm computes with: a client's parameters as one vector, its loss and gradient, optimisers.

Pure functions on tensors. Imports torch and ``raysim.errors``; knows nothing of Ray, configuration or files. Begin with
``context.py``, which an algorithm's functions are given. ``loss_and_gradient.py`` computes the gradient of one client or,
vectorised, of many; ``parameters.py`` says where a tensor lies in the vector.
"""
