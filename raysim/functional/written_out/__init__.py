"""A timm ViT for K clients at once, forward and backward written out: no autograd, no ``vmap``.

Every client has weights of its own, so each layer is a batched matrix product over clients. A layer returns its output and
a function for the way back, which writes the gradients of its weights straight into the flat gradient. Modules that are not
known here go through autograd, each on its own. Begin with ``transformer.py``; ``recognised.py`` decides which module
becomes which layer.
"""
