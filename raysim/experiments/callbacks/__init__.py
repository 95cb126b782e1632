"""What users want done when something happens to a run: the interface, TensorBoard, and Weights & Biases.

May import what ``experiments`` may. ``listeners/callbacks.py`` calls them; raysim's own work on these events is in the other
``listeners/``.
"""
