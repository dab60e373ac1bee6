# Two roles. What runs on a node may reach the bucket and nothing else; the head may also launch nodes.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_iam_policy_document" "ec2_may_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.cluster_name}-node"
  assume_role_policy = data.aws_iam_policy_document.ec2_may_assume.json
}

resource "aws_iam_role" "head" {
  name               = "${var.cluster_name}-head"
  assume_role_policy = data.aws_iam_policy_document.ec2_may_assume.json
}

resource "aws_iam_instance_profile" "node" {
  name = aws_iam_role.node.name
  role = aws_iam_role.node.name
}

resource "aws_iam_instance_profile" "head" {
  name = aws_iam_role.head.name
  role = aws_iam_role.head.name
}

# The bucket, for both. No version can be deleted, so that what a job removes by mistake can be had back.
data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "TheBucket"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.data.arn]
  }

  statement {
    sid = "ItsObjects"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:ListMultipartUploadParts",
      "s3:PutObject",
    ]
    resources = ["${aws_s3_bucket.data.arn}/*"]
  }
}

# Other people's buckets may be open to everybody, and then what is not allowed here is still allowed there.
data "aws_iam_policy_document" "no_other_bucket" {
  statement {
    sid           = "NoOtherBucket"
    effect        = "Deny"
    actions       = ["s3:*"]
    not_resources = [aws_s3_bucket.data.arn, "${aws_s3_bucket.data.arn}/*"]
  }
}

resource "aws_iam_role_policy" "bucket" {
  for_each = { node = aws_iam_role.node.name, head = aws_iam_role.head.name }

  name   = "bucket"
  role   = each.value
  policy = data.aws_iam_policy_document.bucket.json
}

resource "aws_iam_role_policy" "no_other_bucket" {
  for_each = { node = aws_iam_role.node.name, head = aws_iam_role.head.name }

  name   = "no-other-bucket"
  role   = each.value
  policy = data.aws_iam_policy_document.no_other_bucket.json
}

# What Ray's autoscaler calls on the head. Ray tags every machine with the name of its cluster as it launches it.
locals {
  ec2_arn = "arn:${data.aws_partition.current.partition}:ec2:${var.region}:${data.aws_caller_identity.current.account_id}"
}

data "aws_iam_policy_document" "launch" {
  statement {
    sid = "Look"
    actions = [ # EC2 knows no narrower resource for these
      "ec2:DescribeInstances",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeSecurityGroups",
      "ec2:DescribeSubnets",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "LaunchMachinesOfThisCluster"
    actions   = ["ec2:RunInstances"]
    resources = ["${local.ec2_arn}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/ray-cluster-name"
      values   = [var.cluster_name]
    }
  }

  statement {
    sid     = "LaunchThemWith"
    actions = ["ec2:RunInstances"]
    resources = [
      "arn:${data.aws_partition.current.partition}:ec2:${var.region}::image/*",
      "${local.ec2_arn}:key-pair/*",
      "${local.ec2_arn}:network-interface/*",
      "${local.ec2_arn}:security-group/${aws_security_group.cluster.id}",
      "${local.ec2_arn}:spot-instances-request/*",
      "${local.ec2_arn}:subnet/*",
      "${local.ec2_arn}:volume/*",
    ]
  }

  statement {
    sid       = "TagThemAtLaunch"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.ec2_arn}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "TagAndEndThem"
    actions   = ["ec2:CreateTags", "ec2:TerminateInstances"]
    resources = ["${local.ec2_arn}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/ray-cluster-name"
      values   = [var.cluster_name]
    }
  }

  statement {
    sid       = "GiveThemTheRoleOfNodes"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.node.arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "launch" {
  name   = "launch"
  role   = aws_iam_role.head.name
  policy = data.aws_iam_policy_document.launch.json
}
