"""The keys of a YAML file: their schema, how a file is read and checked, overrides, studies.

May import ``raysim.algorithms`` (an ``algorithm:`` block is checked by its class), but never the parts that it
configures. Begin with ``sections/``, which have every key; ``loading.py`` turns a file into a ``Config``.
"""
