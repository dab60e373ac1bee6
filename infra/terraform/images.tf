# Of machines: the newest that bears the name. Of containers: a private repository, if one is wanted.

data "aws_ami" "machine" {
  most_recent = true
  owners      = ["amazon"]

  filter {
    name   = "name"
    values = [var.machine_image]
  }

  filter {
    name   = "architecture"
    values = ["x86_64"]
  }
}

resource "aws_ecr_repository" "image" {
  count = var.image_repository == null ? 0 : 1

  name                 = var.image_repository
  image_tag_mutability = "IMMUTABLE" # a node that starts late runs the same image as the others
  force_delete         = true        # images can be built again

  image_scanning_configuration {
    scan_on_push = true
  }
}

data "aws_iam_policy_document" "pull" {
  count = length(aws_ecr_repository.image)

  statement {
    sid       = "LogIn"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # ECR knows no narrower resource for this
  }

  statement {
    sid       = "Pull"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [aws_ecr_repository.image[count.index].arn]
  }
}

resource "aws_iam_role_policy" "pull" {
  for_each = var.image_repository == null ? {} : { node = aws_iam_role.node.name, head = aws_iam_role.head.name }

  name   = "pull"
  role   = each.value
  policy = data.aws_iam_policy_document.pull[0].json
}
