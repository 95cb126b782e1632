"""What is kept on disk: personal states during a run, checkpoints, records of rounds, the folder of a study.

Files only: knows nothing of Ray, of training or of MLflow; may import ``config``. Begin with ``checkpoint.py``, which says
what files a checkpoint is made of; ``personal_states.py`` is a node's file of what clients keep between rounds,
``server_rows.py`` the driver's of what the server keeps of each,
``study_folder.py`` the folder around the checkpoints of a study's runs.
"""
