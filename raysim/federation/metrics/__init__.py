"""The metrics of a round, a file for each group of them; each is reduced in client-id order.

``clients`` (``personalized/``, ``aggregated/``, ``difference/``, ``global/``, ``new_clients/``), ``cohort`` (``cohort/``,
``train/``), ``communication``, ``sensitivity`` and ``system``. May import ``training`` and the rooms below it. Begin with
``clients.py``; ``federation/round_metrics.py`` puts all groups together.
"""
