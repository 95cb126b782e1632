"""Pictures, one function each, made without a display: the only room that imports matplotlib.

Titles say what a picture shows; ``style.py`` has how all of them look, ``palette.py`` their colours. Imports nothing but
``raysim.errors``.
"""
