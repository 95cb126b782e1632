"""``raysim tune``: trials of every entry of a study under equal budgets, judged on validation samples, then a final study.

``space`` says what is searched, ``search`` asks Optuna for trials, ``trials`` runs them, ``tune`` is the whole.
"""
