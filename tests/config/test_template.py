import re

import pytest

from raysim.algorithms import ALGORITHMS
from raysim.config.loading import children, load_config
from raysim.config.template import commented


@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("data", ["digits", "cifar100", "npz", "federated_npz", "organamnist", "image_folder"])
def test_a_written_file_is_valid_and_its_comments_are_the_defaults(data, method, tmp_path):
    text = commented(data, method, "mine")
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(tmp_path / "mine.yaml")
    assert (config.name, config.data.name, config.algorithm.name) == ("mine", data, method)
    assert len(children(config)) == 3 * len({method, "fedavg", "local"})
    # Every comment that is a key may be made one, and changes nothing.
    uncommented = re.sub(r"^( *)#(?=\w)", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "all.yaml").write_text(uncommented)
    whole = load_config(tmp_path / "all.yaml")
    assert whole.model_dump() == config.model_dump()
    assert "\nresources:\n" in uncommented
