"""What an algorithm computes with: a client's parameters as one vector, its loss and gradient, optimisers.

Pure functions on tensors. May import ``plugins``; knows nothing of Ray, configuration or files. Begin with
``context.py``, which an algorithm's functions are given. ``functional_model.py`` has the model and its parts as functions:
a plain ViT by ``written_out``, whatever else by autograd, of which ``gradient.py`` has the gradient for one client or,
vectorised, for many; ``parameters.py`` says where a tensor lies in the vector.
"""
