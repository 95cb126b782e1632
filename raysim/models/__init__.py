"""timm models: how one is built with its initial weights, saved after a run, exported for a client.

May import ``training``, since a client may adapt its model before it is exported. Begin with ``build.py``;
``trial.py`` tries a new model on one image.
"""
