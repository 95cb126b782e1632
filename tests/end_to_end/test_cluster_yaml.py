"""The files for Ray's cluster launcher and the manifest for KubeRay, as far as they can be checked without a cloud."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from clusters import ROOT, Cluster, free_ports, until

FILES = ["cluster.yaml", "docs/cluster_local.yaml"]
LISTS = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
LISTS += ["head_start_ray_commands", "worker_start_ray_commands"]


def load(file):
    return yaml.safe_load((ROOT / file).read_text())


def commands(file, *lists):
    return [command for name in lists or LISTS for command in load(file).get(name, [])]


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_the_file(file):
    config = load(file)
    jsonschema.validate(config, json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text()))
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] in types
    assert sum(kind["max_workers"] for kind in types.values()) == prepared["max_workers"]


def test_gpu_nodes_come_and_go_and_the_head_hosts_no_actor():
    config = load("cluster.yaml")
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == config["max_workers"] > 0
    # What must last is on a disk of its own, which outlives the node.
    disks = {disk["DeviceName"]: disk["Ebs"] for disk in head["node_config"]["BlockDeviceMappings"]}
    assert disks["/dev/sdf"]["DeleteOnTermination"] is False


def test_all_own_machines_are_used():
    config = prepare_config(load("docs/cluster_local.yaml"))
    (machines,) = config["available_node_types"].values()
    assert machines["min_workers"] == machines["max_workers"] == len(config["provider"]["worker_ips"]) == 2


@pytest.mark.parametrize("file", FILES)
def test_every_command_is_a_shell_command(file):
    for command in commands(file):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, f"{command}\n{checked.stderr}"
        assert "\n" not in command


@pytest.mark.parametrize("file", FILES)
def test_ray_start_has_the_options_that_are_used(file):
    found = [c.split("ray start ")[1] for c in commands(file) if "ray start " in c]
    assert len(found) == 2
    for arguments in found:
        options = ray_start.make_context("ray start", shlex.split(arguments)).params
        assert bool(options["head"]) != bool(options["address"])
        if options["head"]:
            assert options["dashboard_host"] == "127.0.0.1"


@pytest.mark.parametrize("file", [*FILES, "docs/cluster.md"])
def test_there_is_no_secret_and_every_node_asks_for_the_token(file):
    text = (ROOT / file).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{12}|BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{32,}\b|RAY_AUTH_TOKEN=\S", text)
    assert "RAY_AUTH_MODE=token" in text
    if file in FILES:
        mounts = load(file)["file_mounts"]
        assert [mounts[path] for path in mounts if path.endswith("/.ray/auth_token")] == ["~/.ray/auth_token"]
        assert "." in mounts.values()
        assert (ROOT / load(file)["rsync_filter"][0]).is_file()


def test_bashrc_gets_every_line_once(tmp_path):
    for _ in range(2):
        for command in commands("cluster.yaml", "initialization_commands")[:1]:
            subprocess.run(["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    show = '. ~/.bashrc; echo "$RAY_AUTH_MODE $RAYSIM_HOME $MLFLOW_TRACKING_URI"'
    said = subprocess.run(
        ["bash", "-c", show], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == ["token", "/data/raysim", "http://127.0.0.1:5000"]
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 5


@pytest.mark.parametrize("labelled", [False, True], ids=["new disk", "disk with data"])
def test_only_an_empty_disk_is_formatted(tmp_path, labelled):
    """With stand-ins for the commands that look at disks: a root disk with partitions, one with data, and an empty one."""
    stubs = {
        "sudo": '"$@"',
        "lsblk": 'case "$1" in -dnpo) echo /dev/root /dev/old /dev/new;; '
        '*) [ "$3" = /dev/root ] && printf "root\\nroot1\\n" || echo "${3#/dev/}";; esac',
        "blkid": f'case "$1" in -L) {"true" if labelled else "false"};; *) [ "$1" != /dev/new ];; esac',
        "mkfs.ext4": f'echo "$@" >> {tmp_path / "formatted"}',
        "udevadm": "true",
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (command,) = (c for c in commands("cluster.yaml", "head_start_ray_commands") if "mkfs" in c)
    subprocess.run(["bash", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    formatted = (tmp_path / "formatted").read_text() if (tmp_path / "formatted").exists() else ""
    assert formatted == ("" if labelled else "-q -L raysim /dev/new\n")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_mlflow_is_started_once_as_the_file_says(file):
    """The commands themselves, with another port and another folder."""
    if shutil.which("curl") is None:
        pytest.skip("there is no command `curl`")
    port = str(free_ports(1)[0])
    with Cluster() as cluster:
        home = cluster.folder / "home"
        (home / "raysim").mkdir(parents=True)
        (home / ".raysim_cluster").write_text(f"RAYSIM_HOME={home / 'raysim'}\n")
        cluster.environment["HOME"] = str(home)

        def ours(command):
            return command.replace("5000", port).replace("/data/raysim", str(home / "raysim"))

        start, wait = (ours(c) for c in commands(file, "head_start_ray_commands") if "5000" in c)
        for command in (start, wait, start):
            process = cluster.popen("mlflow", ["bash", "-c", command], cluster.head)
            until(lambda process=process: process.poll() is not None, 90, command)
            assert process.returncode == 0
        assert (home / "raysim" / "mlflow.db").is_file()
        assert len([p for p in cluster.processes() if "server" in p.cmdline()]) == 1
        status = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{port}/"]
        assert cluster.run(status).stdout == "200"
        assert cluster.run([*status, "-H", "Host: elsewhere.example"]).stdout == "403"


# Fields of KubeRay's API (ray.io/v1) that may be used; another spelling would be ignored or refused.
RAY_JOB = {"entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
RAY_CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"}
RAY_CLUSTER |= {"headGroupSpec", "workerGroupSpecs"}
GROUP = {"rayStartParams", "template"}
WORKERS = GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def test_the_manifest_for_kuberay_has_the_essential_fields():
    pages = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL | re.MULTILINE)
    (manifest,) = (page for page in pages if "kind: RayJob" in page)
    claim, job = yaml.safe_load_all(manifest)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= RAY_JOB
    assert job["spec"]["entrypoint"].startswith("raysim run ")
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(head) == GROUP
    assert set(workers) <= WORKERS
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    (container,), (worker,) = (group["template"]["spec"]["containers"] for group in (head, workers))
    assert container["image"] == worker["image"]
    assert container["image"].split(":")[1].startswith(cluster["rayVersion"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    # Every value of rayStartParams is a string, also a number.
    assert all(isinstance(value, str) for group in (head, workers) for value in group["rayStartParams"].values())
    # Results lie on the volume that is claimed.
    assert claim["kind"] == "PersistentVolumeClaim"
    (volume,), (mount,) = head["template"]["spec"]["volumes"], container["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert mount["name"] == volume["name"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["RAYSIM_HOME"].startswith(mount["mountPath"] + "/")
