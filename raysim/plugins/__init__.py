"""Plugins: small modules that an algorithm adds to a timm ViT, one file each, reached by name through ``registry.py``.

A plugin is a child or parameter of a module that timm calls anyway (``attn.qkv``, ``mlp``, a block), with a forward hook. So
timm's own parameters keep their names, pretrained weights and exports fit, and attention keeps timm's fused kernels. Imports
torch and ``raysim.errors``.
"""
