"""``python -m raysim.bench.gpu``: what raysim does on the GPUs of a machine, in one call, with nothing to prepare.

Needs no Ray and no MLflow. Begin with ``__main__.py``, which runs every step in a process of its own with its own time limit;
``steps.py`` is their list.
"""
