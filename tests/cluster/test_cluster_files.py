"""The files of experiments/cluster: KubeRay's RayJob, Ray's cluster launcher, and the image."""

import re
import shlex
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from dynopt_ray.runs import load_spec

ROOT = Path(__file__).parents[2]
FILES = ROOT / "experiments" / "cluster"
DOCKERFILE = (FILES / "Dockerfile").read_text()


def mapping(required: str = "", **properties: Any) -> dict[str, Any]:
    """The schema of an object without other fields."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": required.split(),
    }


TEXT, COUNT, YES = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def each(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


POD = mapping(
    "spec",
    spec=mapping(
        "containers",
        tolerations=each(mapping("key", key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)),
        volumes=each(
            mapping("name", name=TEXT, persistentVolumeClaim=mapping("claimName", claimName=TEXT))
        ),
        containers=each(
            mapping(
                "name image resources",
                name=TEXT,
                image=TEXT,
                ports=each(mapping("containerPort", containerPort=COUNT, name=TEXT)),
                resources=mapping("requests limits", requests=TEXTS, limits=TEXTS),
                volumeMounts=each(mapping("mountPath name", mountPath=TEXT, name=TEXT)),
            )
        ),
    ),
)
# The fields that the RayJob uses, from the reference of KubeRay's ray.io/v1.
RAY_JOB = mapping(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=mapping("name", name=TEXT),
    spec=mapping(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=YES,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=mapping(
            "rayVersion headGroupSpec workerGroupSpecs",
            rayVersion=TEXT,
            authOptions=mapping("mode", mode={"enum": ["token", "disabled"]}),
            enableInTreeAutoscaling=YES,
            headGroupSpec=mapping("template", rayStartParams=TEXTS, template=POD),
            workerGroupSpecs=each(
                mapping(
                    "groupName template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                )
            ),
        ),
    ),
)


@pytest.fixture
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    return loaded


@pytest.fixture
def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FILES / "launcher.yaml").read_text())
    return loaded


def test_the_ray_job_has_fields_that_kuberay_knows(job: dict[str, Any]) -> None:
    jsonschema.validate(job, RAY_JOB)
    job["spec"]["rayClusterSpec"]["autOptions"] = {}
    with pytest.raises(jsonschema.ValidationError, match="autOptions"):
        jsonschema.validate(job, RAY_JOB)


def test_the_ray_job_needs_a_token_and_runs_no_trial_on_its_head(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["rayVersion"] == ray.__version__
    assert job["spec"]["backoffLimit"] > 0
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for pod in pods for c in pod["template"]["spec"]["containers"]}
    assert images == {re.findall(r"-t (\S+) \.", DOCKERFILE)[0]}
    for pod in pods:
        named = {volume["name"] for volume in pod["template"]["spec"]["volumes"]}
        mounted = {
            m["name"] for c in pod["template"]["spec"]["containers"] for m in c["volumeMounts"]
        }
        assert named == mounted == {"runs"}


def test_the_ray_job_continues_a_run_that_has_begun(job: dict[str, Any], tmp_path: Path) -> None:
    """The entry point is run by a shell, with a `dynopt` that writes down how it is called."""
    command = tmp_path / "dynopt"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    command.chmod(0o755)
    entrypoint = job["spec"]["entrypoint"].replace("/runs/", f"{tmp_path}/")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(entrypoint, shell=True, env=environment, check=True)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "manifest.json").touch()
    subprocess.run(entrypoint, shell=True, env=environment, check=True)
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert second == f"resume {tmp_path}/search"
    name, out, where, flag, override = first.removeprefix("run ").split()
    assert (out, where, flag) == ("--out", f"{tmp_path}/search", "--set")
    assert load_spec(name, [override]).kind == "search"


def test_ray_accepts_the_launchers_file(launcher: dict[str, Any]) -> None:
    prepared = prepare_config(launcher)
    validate_config(prepared)
    launcher["available_node_types"]["head"]["resourses"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resourses"):
        validate_config(prepare_config(launcher))


def test_the_launchers_commands_are_those_of_ray(launcher: dict[str, Any]) -> None:
    commands = launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]
    starts = [shlex.split(command) for command in commands if "ray start" in command]
    assert len(starts) == 2
    for token, program, _, *options in starts:
        assert (token, program) == ("RAY_AUTH_MODE=token", "ray")
        context = start.make_context("start", options)
        assert context.params["dashboard_host"] in (None, "127.0.0.1", "localhost")
        assert context.params["head"] == (context.params["num_cpus"] == 0)
    token_file = "/home/ray/.ray/auth_token"
    assert launcher["file_mounts"] == {token_file: "~/.ray/auth_token"}
    assert launcher["docker"]["image"] == re.findall(r"-t (\S+) \.", DOCKERFILE)[0]


def test_the_image_has_the_versions_of_this_machine() -> None:
    version, python = re.findall(r"^FROM rayproject/ray:([\d.]+)-py(\d+)-gpu$", DOCKERFILE, re.M)[0]
    assert version == ray.__version__
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"on Python {python[0]}.{python[1:]}" in constraints
    assert f"ray=={version}" in constraints


@pytest.mark.slow
def test_the_steps_of_the_image_can_be_carried_out(tmp_path: Path) -> None:
    """In a virtual environment that sees the packages installed here, so that none is loaded."""
    source = tmp_path / "source"
    source.mkdir()
    for names in re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILE, re.M):
        for name in names.split():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(purelib) / "here.pth").write_text(sysconfig.get_path("purelib"))
    steps = re.findall(r"^RUN (.+)$", DOCKERFILE, re.M)
    assert len(steps) == 2
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(steps)],
        cwd=source,
        env={"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    for name in ("dynopt_ray/experiments/search.yaml", "dynopt_envs/__init__.py"):
        assert (Path(purelib) / name).is_file()
