from raysim.tracking.tags import git_commit


def test_no_repository_no_commit(tmp_path):
    assert git_commit(tmp_path) is None
