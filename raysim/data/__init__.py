"""Data sets, and how their samples are divided among clients.

May import ``config``. Begin with ``loading.py``; ``sources.py`` has the data sets by name, ``partitioners.py`` and
``partition_draws.py`` the ways to divide them, ``image_tree.py`` which files of a folder are read, ``decoding.py`` and
``image_cache.py`` how these become pixels, ``pixel_range.py`` what arrays of numbers are. What a source returns is a
``Dataset`` of uint8 images as they are stored; batches are made in ``training``.
"""
