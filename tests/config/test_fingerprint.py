"""What travels between driver and actors: the code that they train by."""

from raysim.config.fingerprint import algorithm_digest

from configs import tiny


def test_the_code_of_an_algorithm_is_part_of_a_run():
    codes = {algorithm_digest(tiny(algorithm={"name": name})) for name in ("fedavg", "fedper", "methods:Slow")}
    assert len(codes) == 3
    assert algorithm_digest(tiny()) == algorithm_digest(tiny(algorithm={"name": "fedperfix", "mid_dim": 8}))


def test_a_file_that_is_edited_later_is_not_what_this_process_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, text = tmp_path / "edited_of_test.py", "from algorithms import FederatedAlgorithm\n\n\n"
    file.write_text(text + "class Mine(FederatedAlgorithm):\n    pi: int = 3\n")
    config = tiny(algorithm={"name": "edited_of_test:Mine"})
    before = algorithm_digest(config)
    file.write_text(text + "class Mine(FederatedAlgorithm):\n    pi: int = 4\n")
    assert algorithm_digest(config) == before
