"""`infra/terraform`: its own tests, and applied at a server that stands for AWS, where the policies are read back."""

import fnmatch
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.aws import REGION, Moto
from tests.support.places import REPOSITORY

SOURCE = REPOSITORY / "infra/terraform"
BUCKET = "segtrain-of-a-test"
BUCKET_ARN = f"arn:aws:s3:::{BUCKET}"
PROVIDER = "hashicorp/aws"
FIND_S = 300


class Terraform:
    """Terraform in a copy of the folder, so that nothing is left in the repository."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder / "terraform"
        if not self.folder.exists():
            shutil.copytree(SOURCE, self.folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars"))
        self._environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **environment}

    def run(self, *words: str, seconds: float = 900, may_fail: bool = False) -> str:
        """What it prints; a failure fails the test, with that."""
        command = ["terraform", f"-chdir={self.folder}", *words]
        ended = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=seconds)
        assert may_fail or ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
        return ended.stdout


@pytest.fixture
def binary() -> str:
    found = shutil.which("terraform")
    if found is None:
        pytest.skip("terraform is missing")
    return found


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Terraform finds the AWS provider: the user's own settings, or a mirror on this machine."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is missing")
    own = os.environ.get("TF_CLI_CONFIG_FILE", "")
    if Path(own).is_file():
        return {}
    search = ["find", "/", "-xdev", "-maxdepth", "5", "-type", "d", "-path", f"*{PROVIDER}", "-print", "-quit"]
    found = subprocess.run(search, capture_output=True, text=True, timeout=FIND_S, check=False).stdout.strip()
    if not found:
        pytest.skip(f"a mirror of Terraform's provider {PROVIDER} is missing, and TF_CLI_CONFIG_FILE names none")
    settings = tmp_path_factory.mktemp("terraform") / "tf.rc"
    mirror = f'filesystem_mirror {{\n path = "{Path(found).parents[2]}"\n include = ["{PROVIDER}"]\n }}'
    settings.write_text(f"provider_installation {{\n {mirror}\n}}\n")
    return {"TF_CLI_CONFIG_FILE": str(settings)}


def test_the_files_are_formatted(binary: str) -> None:
    environment = {**os.environ, "TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1"}
    words = [binary, f"-chdir={SOURCE}", "fmt", "-check", "-recursive", "-diff"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_it_is_valid_and_its_own_tests_pass_without_an_account(provider: dict[str, str], tmp_path: Path) -> None:
    terraform = Terraform(tmp_path, {**provider, "AWS_EC2_METADATA_DISABLED": "true"})
    terraform.run("init", "-input=false", "-backend=false")
    terraform.run("validate")
    assert "0 failed" in terraform.run("test", "-no-color")


def statements(iam: Any, role: str) -> list[dict[str, Any]]:
    """All statements of a role, from its policies as AWS keeps them."""
    found = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        found += iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]["Statement"]
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    return found


def is_allowed(policy: list[dict[str, Any]], action: str, resource: str) -> bool:
    """AWS's own rule: one Deny forbids, one Allow is needed. Conditions are taken to hold: the worst case."""

    def concerns(statement: dict[str, Any]) -> bool:
        def some(key: str, value: str) -> bool:
            patterns = statement[key] if isinstance(statement[key], list) else [statement[key]]
            return any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)

        on = some("Resource", resource) if "Resource" in statement else not some("NotResource", resource)
        return some("Action", action) and on

    effects = {statement["Effect"] for statement in policy if concerns(statement)}
    return effects == {"Allow"}


@pytest.mark.slow
def test_applied_the_roles_reach_the_bucket_and_no_other_and_only_the_head_launches(
    provider: dict[str, str], tmp_path: Path, moto: Moto
) -> None:
    terraform = Terraform(tmp_path, {**provider, **moto.environment})
    override = 'provider "aws" {\n  s3_use_path_style           = true\n  skip_credentials_validation = true\n}\n'
    (terraform.folder / "moto_override.tf").write_text(override)
    # moto knows no image of AWS's Deep Learning series.
    settings = {"region": REGION, "bucket": BUCKET, "ssh_cidr": "203.0.113.7/32", "machine_image": "amzn-ami-hvm-*"}
    given = [f"-var={name}={value}" for name, value in settings.items()]
    terraform.run("init", "-input=false")
    terraform.run("apply", "-input=false", "-auto-approve", "-no-color", *given)
    assert "No changes" in terraform.run("plan", "-input=false", "-no-color", *given)

    outputs = {name: each["value"] for name, each in json.loads(terraform.run("output", "-json")).items()}
    edits = yaml.safe_load(outputs["cluster_yaml_edits"])
    config = yaml.safe_load((SOURCE.parents[1] / "cluster.yaml").read_text())
    assert edits["cluster_name"] == config["cluster_name"]
    head, node = outputs["head_instance_profile"], outputs["node_instance_profile"]
    profiles = {
        name: each["node_config"]["IamInstanceProfile"] for name, each in config["available_node_types"].items()
    }
    assert profiles.pop("head") == {"Name": head}
    assert {profile["Name"] for profile in profiles.values()} == {node}

    iam = moto.client("iam")
    policy = statements(iam, node)
    for statement in policy:
        where = statement["Resource"] if statement["Effect"] == "Allow" else statement["NotResource"]
        assert set(where if isinstance(where, list) else [where]) <= {BUCKET_ARN, f"{BUCKET_ARN}/*"}, statement
    for reached in (policy, statements(iam, head)):
        for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"):
            assert is_allowed(reached, f"s3:{action}", f"{BUCKET_ARN}/runs/a/b")
            assert not is_allowed(reached, f"s3:{action}", f"arn:aws:s3:::{BUCKET}-of-another/runs/a/b")
        assert is_allowed(reached, "s3:ListBucket", BUCKET_ARN)
        assert not is_allowed(reached, "s3:ListBucket", "arn:aws:s3:::another")
        # What would undo the bucket's protection.
        for action in ("DeleteObjectVersion", "PutBucketPolicy", "PutLifecycleConfiguration", "DeleteBucket"):
            assert not is_allowed(reached, f"s3:{action}", BUCKET_ARN)
            assert not is_allowed(reached, f"s3:{action}", f"{BUCKET_ARN}/runs/a/b")

    account = iam.get_role(RoleName=node)["Role"]["Arn"].split(":")[4]
    machine = f"arn:aws:ec2:{REGION}:{account}:instance/i-1"
    may_launch = statements(iam, head)
    assert is_allowed(may_launch, "ec2:RunInstances", machine)
    assert not is_allowed(policy, "ec2:RunInstances", machine)
    group = f"arn:aws:ec2:{REGION}:{account}:security-group"
    assert is_allowed(may_launch, "ec2:RunInstances", f"{group}/{outputs['security_group_id']}")
    assert not is_allowed(may_launch, "ec2:RunInstances", f"{group}/sg-of-another")
    assert is_allowed(may_launch, "iam:PassRole", f"arn:aws:iam::{account}:role/{node}")
    assert not is_allowed(may_launch, "iam:PassRole", f"arn:aws:iam::{account}:role/admin")
    assert not is_allowed(may_launch, "iam:PassRole", f"arn:aws:iam::{account}:role/{head}")
    for statement in may_launch:
        of_machines = f"arn:aws:ec2:{REGION}:{account}:instance/*" in statement.get("Resource", [])
        assert not of_machines or "Condition" in statement, f"machines of others: {statement}"

    # And moto, which checks keys and policies from here on, refuses what lies outside.
    for role in (node, head):  # moto 5.2 takes a Deny with NotResource for an Allow
        iam.delete_role_policy(RoleName=role, PolicyName="no-other-bucket")
    admin = moto.client("s3")
    [tls_only] = json.loads(admin.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert (tls_only["Effect"], tls_only["Action"], tls_only["Principal"]) == ("Deny", "s3:*", "*")
    assert tls_only["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    admin.delete_bucket_policy(Bucket=BUCKET)  # moto speaks plain HTTP
    admin.create_bucket(Bucket="another", CreateBucketConfiguration={"LocationConstraint": REGION})
    arn = iam.get_role(RoleName=node)["Role"]["Arn"]
    keys = moto.client("sts").assume_role(RoleArn=arn, RoleSessionName="a-node")["Credentials"]
    moto.check_keys()

    names = {"aws_access_key_id": "AccessKeyId", "aws_session_token": "SessionToken"}
    own = {name: keys[key] for name, key in names.items()} | {"aws_secret_access_key": keys["SecretAccessKey"]}
    s3 = moto.client("s3", **own)
    s3.put_object(Bucket=BUCKET, Key="runs/a", Body=b"a")
    assert s3.get_object(Bucket=BUCKET, Key="runs/a")["Body"].read() == b"a"
    assert [each["Key"] for each in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["runs/a"]
    refused = {
        "another bucket's objects": lambda: s3.put_object(Bucket="another", Key="a", Body=b"a"),
        "another bucket": lambda: s3.list_objects_v2(Bucket="another"),
        "the list of buckets": s3.list_buckets,
        "the bucket's rules": lambda: s3.put_bucket_versioning(
            Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}
        ),
        "machines": lambda: moto.client("ec2", **own).run_instances(MinCount=1, MaxCount=1),
        "roles": lambda: moto.client("iam", **own).list_roles(),
        "a wrong secret": lambda: moto.client("s3", **own | {"aws_secret_access_key": "wrong"}).list_objects_v2(
            Bucket=BUCKET
        ),
    }
    from botocore.exceptions import ClientError

    for what, call in refused.items():
        with pytest.raises(ClientError) as refusal:
            call()
        assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403, what
