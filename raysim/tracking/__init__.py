"""MLflow: the only room that imports it. What a run logs, and how it is read back.

May import ``config`` and ``storage``. Begin with ``mlflow_store.py``; ``outbox.py`` keeps a slow or absent server from
holding up a run, ``tags.py`` has every tag of a run, ``mlflow_reader.py`` reads finished runs for comparisons.
"""
