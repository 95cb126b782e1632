"""Who computes where: Ray actors that train client batches, and how they are started, given tasks, replaced.

May import ``training``, ``models`` and ``storage``. Begin with ``client_actor.py``, what an actor does; ``actor_pool.py``
starts and replaces actors; ``dispatch.py`` takes the tasks of a round through them, with retries; ``task_durations.py`` has
how long a task is expected to take, and its timeout; ``auto.py`` resolves every ``auto`` of ``resources:``, on a GPU with the
help of ``gpu_trial.py``.
"""
